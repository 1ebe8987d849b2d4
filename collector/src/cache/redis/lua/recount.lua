-- Raises what was used to what the store knows of. KEYS: limits. ARGV: used in the day, in the month, the day.
-- Returns 0 when that was another day: what it says would be taken for today's.
if tonumber(ARGV[3]) ~= day then
  return 0
end
local was = redis.call('HMGET', KEYS[1], 'day', 'day_used', 'month', 'month_used')
local day_used = tonumber(was[1]) == day and tonumber(was[2]) or 0
local month_used = tonumber(was[3]) == month and tonumber(was[4]) or 0
redis.call('HSET', KEYS[1], 'day', day, 'month', month, 'recounted', day,
  'day_used', string.format('%.0f', math.max(day_used, tonumber(ARGV[1]))),
  'month_used', string.format('%.0f', math.max(month_used, tonumber(ARGV[2]))))
redis.call('PEXPIRE', KEYS[1], 3456000000)
return 1

-- Gives back what was taken and not used. What it is worth is cut to the burst at the next taking.
-- KEYS: limits. ARGV: events, the day and month they were taken in, 1 if they were taken out of a rate, too.
local was = redis.call('HMGET', KEYS[1], 'tokens', 'day', 'day_used', 'month', 'month_used')
local back = tonumber(ARGV[1])
if ARGV[4] == '1' and was[1] then
  redis.call('HSET', KEYS[1], 'tokens', string.format('%.3f', tonumber(was[1]) + back))
end
-- A day or month that is over has nothing to give back to, and the one after it never counted them.
for field, taken_in in pairs({ [2] = ARGV[2], [4] = ARGV[3] }) do
  if was[field] == taken_in then
    local left = math.max(0, (tonumber(was[field + 1]) or 0) - back)
    redis.call('HSET', KEYS[1], field == 2 and 'day_used' or 'month_used', string.format('%.0f', left))
  end
end
return 1

-- Gives back what was taken for later and not used. What it is worth is cut to the burst at the next taking.
-- KEYS: limits. ARGV: events.
local was = redis.call('HMGET', KEYS[1], 'tokens', 'day_used', 'month_used')
if not was[1] then
  return 0
end
local back = tonumber(ARGV[1])
local less = function(used) return string.format('%.0f', math.max(0, (tonumber(used) or 0) - back)) end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.3f', tonumber(was[1]) + back),
  'day_used', less(was[2]), 'month_used', less(was[3]))
return 1

-- Takes a lock nobody holds. The token is higher than every one before it; by the clock, in us, also than those that
-- were lost.
-- KEYS: holder, token. ARGV: holder, how long in ms, how long the token is kept in ms.
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return 0
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local token = math.max((tonumber(redis.call('GET', KEYS[2])) or 0) + 1, now)
redis.call('SET', KEYS[2], string.format('%.0f', token), 'PX', ARGV[3])
return token

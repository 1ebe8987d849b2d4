-- Lists a node, drops those that fell silent, returns all that are left, before them 1 if the keys were not ours.
-- KEYS: when each was last seen, what each is. ARGV: id, what it is, how long it is listed in ms.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local ttl = tonumber(ARGV[3])
-- What somebody else put there would stop every process. Each lists itself again with its next beat.
local foreign = 0
for i, kind in ipairs({ 'zset', 'hash' }) do
  local found = redis.call('TYPE', KEYS[i])['ok']
  if found ~= 'none' and found ~= kind then
    foreign = 1
  end
end
if foreign == 1 then
  redis.call('DEL', KEYS[1], KEYS[2])
end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
-- Those of the future were written before the clock went back.
for _, outside in ipairs({ { '-inf', now - ttl }, { now + ttl, '+inf' } }) do
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], outside[1], outside[2])) do
    redis.call('ZREM', KEYS[1], id)
    redis.call('HDEL', KEYS[2], id)
  end
end
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
return { foreign, redis.call('HVALS', KEYS[2]) }

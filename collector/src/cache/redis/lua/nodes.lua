-- Returns when each listed node was last seen and what it is: ms, node, ms, node, …
-- KEYS: when each was last seen, what each is. ARGV: how long a node is listed in ms.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local seen = redis.call('ZRANGEBYSCORE', KEYS[1], now - tonumber(ARGV[1]), '+inf', 'WITHSCORES')
local found = {}
for i = 1, #seen, 2 do
  local node = redis.call('HGET', KEYS[2], seen[i])
  if node then
    found[#found + 1] = seen[i + 1]
    found[#found + 1] = node
  end
end
return found

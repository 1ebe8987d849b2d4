-- Replaces the live counters by what the store holds. Within an epoch they never go back. Positions and generations stay
-- far below 2^53, where Lua's numbers cease to be exact.
-- KEYS: counters. ARGV: epoch, generation, applied_to, complete, then name, count, name, count, …
local at = redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'applied_to')
if at[1] == ARGV[1] then
  local generation, applied_to = tonumber(at[2]) or 0, tonumber(at[3]) or 0
  local new_generation = tonumber(ARGV[2])
  if new_generation < generation or (new_generation == generation and tonumber(ARGV[3]) < applied_to) then
    return 0
  end
end
redis.call('UNLINK', KEYS[1])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'generation', ARGV[2], 'applied_to', ARGV[3], 'complete', ARGV[4])
for i = 5, #ARGV, 2 do
  redis.call('HSET', KEYS[1], '=' .. ARGV[i], ARGV[i + 1])
end
return 1

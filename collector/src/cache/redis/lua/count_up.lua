-- Adds one step to the live counters, if it follows on what they contain.
-- KEYS: counters. ARGV: epoch, generation, from, through, names kept at most, then name, count, name, count, …
local at = redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'applied_to', 'complete')
if at[1] ~= ARGV[1] or at[2] ~= ARGV[2] or at[3] ~= ARGV[3] then
  return 0
end
if at[4] == '1' then
  for i = 6, #ARGV, 2 do
    redis.call('HINCRBY', KEYS[1], '=' .. ARGV[i], ARGV[i + 1])
  end
  -- Four fields are not names.
  if redis.call('HLEN', KEYS[1]) - 4 > tonumber(ARGV[5]) then
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'generation', ARGV[2], 'complete', '0')
  end
end
-- Last: what is cut short before this doesn't seem to contain the step, and is replaced.
redis.call('HSET', KEYS[1], 'applied_to', ARGV[4])
return 1

-- Lets a lock go, if it is still the same holder's. KEYS: holder. ARGV: holder.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])

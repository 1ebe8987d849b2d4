-- Holds a lock for longer, if it is still the same holder's. KEYS: holder. ARGV: holder, how long in ms.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])

-- Marks the keys as a store's, unless they are another's, and returns whose they are. KEYS: store. ARGV: store.
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('GET', KEYS[1])

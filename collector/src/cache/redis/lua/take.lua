-- Takes events out of a project's rate limit and quotas: all of them or none; with what is left, some more for later.
-- KEYS: limits. ARGV: events, how many more, events per second, burst, per day, per month; -1 is no limit.
-- Returns which limit refused (0 none, 1 rate, 2 day, 3 month), how many were taken, tokens left, us until there are
-- enough, used today, used this month, whether the store was asked for those today, the day and month it is.
local need, extra = tonumber(ARGV[1]), tonumber(ARGV[2])
local rate, burst = tonumber(ARGV[3]), tonumber(ARGV[4])
local per_day, per_month = tonumber(ARGV[5]), tonumber(ARGV[6])
local was = redis.call('HMGET', KEYS[1], 'tokens', 'at', 'day', 'day_used', 'month', 'month_used', 'recounted')
local tokens = 0
if rate >= 0 then
  tokens = tonumber(was[1]) or burst
  tokens = math.min(burst, tokens + math.max(0, now - (tonumber(was[2]) or now)) * rate / 1000000)
end
local day_used = tonumber(was[3]) == day and tonumber(was[4]) or 0
local month_used = tonumber(was[5]) == month and tonumber(was[6]) or 0
local recounted = tonumber(was[7]) == day and 1 or 0
-- More than the burst at once goes into debt: otherwise a large batch would never pass.
local enough = math.min(need, burst)
local refused, wait, taken = 0, 0, 0
-- The batch that uses a quota up passes whole, for the same reason.
if per_month >= 0 and month_used >= per_month then
  refused = 3
elseif per_day >= 0 and day_used >= per_day then
  refused = 2
elseif rate >= 0 and tokens < enough then
  refused = 1
  wait = rate > 0 and math.ceil((enough - tokens) * 1000000 / rate) or 86400000000
else
  if rate >= 0 then extra = math.min(extra, floor(tokens - need)) end
  -- Nothing is held ready of a quota nobody knows the rest of.
  if (per_day >= 0 or per_month >= 0) and recounted == 0 then extra = 0 end
  if per_day >= 0 then extra = math.min(extra, per_day - day_used - need) end
  if per_month >= 0 then extra = math.min(extra, per_month - month_used - need) end
  taken = need + math.max(0, extra)
  tokens = tokens - taken
  day_used = day_used + taken
  month_used = month_used + taken
end
redis.call('HSET', KEYS[1], 'day', day, 'day_used', string.format('%.0f', day_used),
  'month', month, 'month_used', string.format('%.0f', month_used))
-- Without a rate nothing is taken out of its bucket, which a rate that is set later would have to fill up again.
if rate >= 0 then
  redis.call('HSET', KEYS[1], 'tokens', string.format('%.3f', tokens), 'at', string.format('%.0f', now))
end
-- 40 days: longer than a month is counted.
redis.call('PEXPIRE', KEYS[1], 3456000000)
return { refused, taken, floor(tokens), wait, day_used, month_used, recounted, day, month }

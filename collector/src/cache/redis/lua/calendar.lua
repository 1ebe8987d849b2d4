-- `now` in us; `day` since 1970 and `month` since the year 0, UTC. After Howard Hinnant's civil_from_days,
-- https://howardhinnant.github.io/date_algorithms.html#civil_from_days
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local floor = math.floor
local day = floor(tonumber(time[1]) / 86400)
local era = floor((day + 719468) / 146097)
local day_of_era = day + 719468 - era * 146097
local year_of_era = floor(
  (day_of_era - floor(day_of_era / 1460) + floor(day_of_era / 36524) - floor(day_of_era / 146096)) / 365)
local day_of_year = day_of_era - (365 * year_of_era + floor(year_of_era / 4) - floor(year_of_era / 100))
-- Years begin in March here.
local march_month = floor((5 * day_of_year + 2) / 153)
local month = (year_of_era + era * 400) * 12 + march_month + 2

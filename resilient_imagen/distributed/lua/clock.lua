-- Begins every step. Time is the server's, in whole microseconds (a double holds them exactly for
-- another two centuries); the clocks of those who ask are never looked at.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local function whole(number)
  return string.format('%.0f', number)
end

-- A stored number; the default, if it is none that a double holds exactly (damaged or forged).
local function number_of(text, default)
  local number = tonumber(text)
  return number and math.abs(number) < 2 ^ 53 and number or default
end

-- Begins every step about pacing, and says how a provider's places are kept.
-- KEYS  pace (hash: next, at), free (sorted set: place by moment)
-- `next` is when the next evenly spaced place is due (the generic cell rate algorithm); a place is
-- named by the `next` that it left behind.
local PACE, FREE = KEYS[1], KEYS[2]
local KEEP = 60 * 1000000
local FURTHEST = 3600 * 1000000  -- or a hundred places: how far ahead places are taken at most

local kept = redis.call('HMGET', PACE, 'next', 'at')
local next_place = number_of(kept[1] or '0', 0)
local back = number_of(kept[2] or '0', 0) - now
if back > 0 then  -- the server's clock was put back, or another server took over
  next_place = next_place - back
  redis.call('DEL', FREE)
end

local function save()
  redis.call('HSET', PACE, 'next', whole(next_place), 'at', whole(now))
  local keep = whole((math.max(next_place - now, 0) + KEEP) / 1000)
  redis.call('PEXPIRE', PACE, keep)
  redis.call('PEXPIRE', FREE, keep)
end

-- The circuit opens at once: a server's hint, a quota, a probe that failed.
--
-- A failed probe may be one worker's own trouble, as the failures in vote.lua may. Unless the
-- service has answered, or the worker is alone, the round goes on: the next worker's probe is the
-- second opinion, and only the first one's own breaker stays open.
--
-- Its basis is one of
--   seen: the worker saw it in the state that it speaks of.
--   told: and it is a hint or a fatal failure. In another state it may lengthen the opening.
--   late: such a thing, but of a state that had ended: it may lengthen an opening, and no more.
--   memory: the worker remembers an opening, and tells it to a store that may have lost its memory:
--     a record in which nothing has happened yet believes it.
--
-- ARGV  epoch, generation, pause, cause, brief, answered (0, 1), basis, openings (in a row, as the
--       worker counts), token (of the probe), closes (0, 1: a hint, closed when it is over)
local pause, cause, brief = tonumber(ARGV[6]), ARGV[7], ARGV[8]
local answered, basis, openings = ARGV[9] == '1', ARGV[10], tonumber(ARGV[11])
local closes = ARGV[13] == '1'

touch('0', '0')
if (basis == 'seen' or basis == 'told') and same(ARGV[4], ARGV[5]) then
  if record.state == 'half_open' and not answered and sole_witness() and not alone() then
    redis.call('ZREM', LEASES, ARGV[12])
    publish()
  else
    open(pause, cause, brief, openings, closes)
  end
elseif (basis == 'late' or basis == 'told') and ARGV[4] == record.epoch
  and record.state == 'open' then
  open(pause, cause, brief, openings, closes)
elseif ARGV[4] ~= record.epoch and record.generation == 1 and record.state == 'closed' then
  record.openings = math.max(openings - 1, 0)
  open(pause, cause, brief, openings, closes)
end
save()
return told()

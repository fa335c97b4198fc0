-- The circuit opens at once: for a server's hint, an exhausted quota or a failed probe.
--
-- A failed probe may be local to one worker, as the failures in vote.lua may. Unless the service has
-- answered, or the worker is alone, the round continues: the next worker's probe is the second
-- opinion, and only the first worker's own breaker stays open.
--
-- The basis is one of
--   seen: the worker saw it in the state that it names.
--   told: the same, for a hint or a fatal failure. In another state it may lengthen the opening.
--   late: a hint or a fatal failure of a state that had ended. It may only lengthen an opening.
--   memory: the worker remembers an opening, and Redis may have lost its data. A record in which
--     nothing has happened yet adopts it.
--
-- ARGV  epoch, generation, pause (the worker computes it, from the cost of its probe), cause, brief,
--       answered (0, 1), basis, openings (in a row, as the worker remembers them), token (of the
--       probe), closes (0, 1: a hint, closed when it is over)
local pause, cause, brief = tonumber(ARGV[6]), ARGV[7], ARGV[8]
local answered, basis, openings = ARGV[9] == '1', ARGV[10], tonumber(ARGV[11])
local closes = ARGV[13] == '1'

touch('0', '0')
if (basis == 'seen' or basis == 'told') and same(ARGV[4], ARGV[5]) then
  if record.state == 'half_open' and not answered and sole_witness() and not alone() then
    redis.call('ZREM', LEASES, ARGV[12])
    publish()
  else
    open(pause, cause, brief, closes)
  end
elseif (basis == 'late' or basis == 'told') and ARGV[4] == record.epoch
  and record.state == 'open' then
  open(pause, cause, brief, closes)
elseif ARGV[4] ~= record.epoch and record.generation == 1 and record.state == 'closed' then
  record.openings = math.max(openings - 1, 0)
  open(pause, cause, brief, closes)
end
save()
return told()

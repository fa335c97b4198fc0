-- The circuit opens at once: a server's hint, a quota, a probe that failed.
--
-- A failed probe may be one worker's own trouble, as the failures in vote.lua may. Unless the
-- service has answered, or the worker is alone, the round goes on: the next worker's probe is the
-- second opinion, and only the first one's own breaker stays open.
--
-- Or (claim 0) a worker that remembers an opening tells it to a store that may have lost its
-- memory: a record in which nothing has happened yet believes it.
--
-- ARGV  epoch, generation, pause, cause, brief, answered (0, 1), claim (0, 1), openings (in a row,
--       as the worker counts), token (of the probe)
local pause, cause, brief = tonumber(ARGV[6]), ARGV[7], ARGV[8]
local answered, claim, openings = ARGV[9] == '1', ARGV[10] == '1', tonumber(ARGV[11])

touch('0', '0')
if same(ARGV[4], ARGV[5]) then
  if claim and record.state == 'half_open' and not answered and sole_witness()
    and not alone() then
    redis.call('ZREM', LEASES, ARGV[12])
    publish()
  elseif claim then
    open(pause, cause, brief, openings)
  end
elseif ARGV[4] ~= record.epoch and record.generation == 1 and record.state == 'closed' then
  record.openings = math.max(openings - 1, 0)
  open(pause, cause, brief, openings)
end
save()
return told()

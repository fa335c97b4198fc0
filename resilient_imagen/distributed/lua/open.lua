-- Open at once: after a server's hint, an exhausted quota or a failed probe.
--
-- The failure of a probe may be local to one worker, as in vote.lua. Unless the service itself
-- reported it, or no other process is present, the half-open state continues: the probe of the next
-- witness decides, and only the first worker's own breaker stays open.
--
-- The basis is one of
--   seen: outcomes in the state that the worker names.
--   hinted: the same, for a hint or a fatal failure. In another state it may extend an open period.
--   late: a hint or a fatal failure of a request of an earlier state. It may only extend an open
--     period.
--   memory: the worker remembers an open period, and Redis may have lost its data. A new record
--     adopts it.
--
-- args  pause (the open period), cause, summary, answered (bool), basis, openings (consecutive, as
--       the worker remembers them), token (of the probe), closes (bool: closed after the period)
local basis = args.basis
touch()
if (basis == 'seen' or basis == 'hinted') and is_current() then
  local sole, alone = false, false
  if record.state == 'half_open' and not args.answered then
    sole, alone = add_witness()
  end
  if sole and not alone then
    redis.call('ZREM', LEASES, args.token)
    publish()
  else
    open(args.pause, args.cause, args.summary, args.closes)
  end
elseif (basis == 'late' or basis == 'hinted') and args.epoch == record.epoch
  and record.state == 'open' then
  open(args.pause, args.cause, args.summary, args.closes)
elseif args.epoch ~= record.epoch and record.generation == 1 and record.state == 'closed' then
  record.openings = math.max(args.openings - 1, 0)
  open(args.pause, args.cause, args.summary, args.closes)
end
save()
return reply()

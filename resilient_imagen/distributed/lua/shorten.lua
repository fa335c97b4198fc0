-- End an open period that is longer than the worker's settings and any valid hint allow, because no
-- worker can have caused it (damaged or forged).
-- args  longest (duration)
touch()
if is_current() and record.state == 'open' and record.till - now > args.longest then
  record.till = now
  publish()
end
save()
return reply()

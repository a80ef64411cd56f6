-- uses: (nothing)
-- Put the response in the place of the submitter's mark.
-- KEYS  R (record of the key)
-- ARGV  request id, body hash, holder, state (done: the key's response from now on; over: this round's only),
--       response, record ttl ms
-- reply OK | FENCED (another response was there first, or the failure is not that of who carries it out now)
-- keys  R HASH id, body, holder, until, state, response; a record that was lost is written again
local found = redis.call('HMGET', KEYS[1], 'id', 'holder', 'state')
if found[1] then
  if found[1] ~= ARGV[1] or found[3] == 'done' then return {'FENCED'} end
  if ARGV[4] ~= 'done' and found[2] ~= ARGV[3] then return {'FENCED'} end
end
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'body', ARGV[2], 'holder', ARGV[3], 'state', ARGV[4], 'response', ARGV[5],
  'until', '0')
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[6]) end
return {'OK'}

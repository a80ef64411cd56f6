-- uses: (nothing)
-- Say that the submitter of an idempotency key's request lives, or with a mark of 0 ms that it gives up.
-- KEYS  R (record of the key)
-- ARGV  request id, body hash, holder, mark ms, record ttl ms
-- reply OK | FENCED (somebody else carries it out, or it has ended)
-- keys  R HASH id, body, holder, until, state, response; a record that was lost is written again
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local found = redis.call('HMGET', KEYS[1], 'id', 'holder', 'state')
if found[1] and (found[1] ~= ARGV[1] or found[2] ~= ARGV[3] or found[3] ~= 'run') then return {'FENCED'} end
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'body', ARGV[2], 'holder', ARGV[3], 'state', 'run', 'response', '',
  'until', string.format('%.0f', now + tonumber(ARGV[4])))
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[5]) end
return {'OK'}

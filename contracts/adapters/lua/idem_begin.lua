-- uses: (nothing)
-- Ask for the right to carry out the request of an idempotency key, or for what has become of it.
-- KEYS  R (record of the key)
-- ARGV  request id to use for a new round, body hash, holder, mark ms, record ttl ms, id waited for or ""
-- reply RUN id | WAIT id lapses-in-ms | DONE id response | OVER id response | CONFLICT id
-- keys  R HASH id, body, holder, until (ms, the mark), state (run, done, over), response; ttl from its first round on
-- RUN is for one holder at a time: the first, one that asks again, or the first to come after the mark lapsed.
-- OVER tells whoever waited for that round how it failed; whoever did not begins the next round under a new id.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local found = redis.call('HMGET', KEYS[1], 'id', 'body', 'holder', 'until', 'state', 'response')
local id, state = found[1] or ARGV[1], found[5]
if id == found[1] then
  if found[2] ~= ARGV[2] then return {'CONFLICT', id} end
  if state == 'done' then return {'DONE', id, found[6]} end
  if state == 'over' then
    if id == ARGV[6] then return {'OVER', id, found[6]} end
    id = ARGV[1]
  elseif found[3] ~= ARGV[3] and now < tonumber(found[4]) then
    return {'WAIT', id, string.format('%.0f', tonumber(found[4]) - now)}
  end
end
redis.call('HSET', KEYS[1], 'id', id, 'body', ARGV[2], 'holder', ARGV[3], 'state', 'run', 'response', '',
  'until', string.format('%.0f', now + tonumber(ARGV[4])))
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[5]) end
return {'RUN', id}

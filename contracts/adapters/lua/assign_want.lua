-- uses: base, lease
-- Say which lease should drain which partitions of a topic. Ownership does not change here.
-- KEYS  P
-- ARGV  term, topic, then pairs: partition, lease ("" for nobody)
-- reply OK | TERM | UNAVAIL lease (it is not active); nothing is written unless every lease is active
-- keys  P:topics SET, P:part:<topic>:{want, own, since} HASH, P:lease:<id> HASH state, P:lease:<id>:want SET
local topic = ARGV[2]
local root = P .. ':part:' .. topic
if not is_leader(ARGV[1]) then return {'TERM', ''} end
local now = now_ms()
local checked = {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i + 1]
  if id ~= '' and not checked[id] then
    local state = redis.call('HGET', P .. ':lease:' .. id, 'state')
    if state ~= 'active' or expires_at(id) <= now then return {'UNAVAIL', id} end
    checked[id] = true
  end
end
redis.call('SADD', P .. ':topics', topic)
local changed = {}
for i = 3, #ARGV, 2 do
  local partition, id = ARGV[i], ARGV[i + 1]
  local before = redis.call('HGET', root .. ':want', partition) or ''
  if before ~= id then
    local name = topic .. '/' .. partition
    changed[#changed + 1] = partition
    if before ~= '' then redis.call('SREM', P .. ':lease:' .. before .. ':want', name) end
    if id ~= '' then
      redis.call('HSET', root .. ':want', partition, id)
      redis.call('SADD', P .. ':lease:' .. id .. ':want', name)
    else
      redis.call('HDEL', root .. ':want', partition)
    end
  end
  settle(topic, partition, now)
end
if redis.call('EXISTS', root .. ':want', root .. ':own', root .. ':since') == 0 then
  redis.call('SREM', P .. ':topics', topic)
end
if #changed > 0 then event('want', 'topic', topic, 'partitions', table.concat(changed, ',')) end
return {'OK'}

-- uses: base, lease
-- Take partitions: only an active lease, only those wanted of it, only when free or already its own.
-- KEYS  P
-- ARGV  lease, token, topic, partition…
-- reply OK {granted} {partition, code, …} | GONE | FENCED | EXPIRED | DRAINING | NO (not active yet)
-- keys  P:part:<topic>:{want, own, since} HASH, P:lease:<id> HASH, P:lease:<id>:parts SET, P:lexp ZSET
local id, token, topic = ARGV[1], ARGV[2], ARGV[3]
local root = P .. ':part:' .. topic
local lease, refusal = current_lease(id, token)
if not lease then return {refusal} end
if lease[2] == 'draining' then return {'DRAINING'} end
if lease[2] ~= 'active' then return {'NO'} end
local now = now_ms()
if expires_at(id) <= now then return {'EXPIRED'} end
local mine = id .. ',' .. token
local granted, refused, taken = {}, {}, {}
for i = 4, #ARGV do
  local partition = ARGV[i]
  local own = redis.call('HGET', root .. ':own', partition)
  if redis.call('HGET', root .. ':want', partition) ~= id then
    refused[#refused + 1], refused[#refused + 2] = partition, 'NOT_WANTED'
  elseif own and own ~= mine then
    refused[#refused + 1], refused[#refused + 2] = partition, 'OWNED'
  else
    granted[#granted + 1] = partition
    if not own then
      taken[#taken + 1] = partition
      redis.call('HSET', root .. ':own', partition, mine)
      redis.call('SADD', P .. ':lease:' .. id .. ':parts', topic .. '/' .. partition)
      settle(topic, partition, now)
    end
  end
end
if #taken > 0 then event('claim', 'lease', id, 'topic', topic, 'partitions', table.concat(taken, ',')) end
return {'OK', granted, refused}

-- uses: base, lease
-- Free a partition whose owner did not let go in time. It learns so at its next renewal.
-- KEYS  P
-- ARGV  term, topic, partition, handover limit ms
-- reply OK lease | TERM | NO detail (nobody owns it, its owner is the one wanted, or the limit has not passed)
-- keys  P:part:<topic>:{want, own, since} HASH, P:lease:<id>:parts SET
local topic, partition = ARGV[2], ARGV[3]
local root = P .. ':part:' .. topic
if not is_leader(ARGV[1]) then return {'TERM'} end
local own = redis.call('HGET', root .. ':own', partition)
if not own then return {'NO', 'nobody owns it'} end
local owner = string.match(own, '^[^,]+')
if redis.call('HGET', root .. ':want', partition) == owner then return {'NO', 'its owner is wanted'} end
local now = now_ms()
local since = tonumber(redis.call('HGET', root .. ':since', partition) or fmt(now))
if now - since <= tonumber(ARGV[4]) then return {'NO', 'the owner has time left'} end
redis.call('HDEL', root .. ':own', partition)
redis.call('SREM', P .. ':lease:' .. owner .. ':parts', topic .. '/' .. partition)
settle(topic, partition, now)
event('evict', 'lease', owner, 'topic', topic, 'partitions', partition)
return {'OK', owner}

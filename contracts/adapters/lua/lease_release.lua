-- uses: base, lease
-- The holder, or the agent that saw it end, gives the lease up: to quarantine, never straight to free.
-- KEYS  P
-- ARGV  id, token, reason
-- reply OK | GONE (also for a second release) | FENCED
-- keys  P:lease:<id> HASH, :parts SET, :want SET, P:lexp ZSET, P:quar ZSET, P:part:<topic>:{want, own, since} HASH
local lease, refusal = current_lease(ARGV[1], ARGV[2])
if not lease then return {refusal} end
end_lease(ARGV[1], now_ms(), ARGV[3])
return {'OK'}

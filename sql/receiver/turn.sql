-- The newest batch that a source has sent. $1 site, $2 source id.
-- The answer comes only with the batch that may be a repeat of it: $3 epoch, $4 term, $5 batch.
select epoch, term, nonce, batch, body_hash, case when (epoch, term, batch) = ($3, $4, $5) then answer end as answer
from cloud_meta.sources
where site = $1 and source_id = $2

-- The newest batch of a source; and for batch $5 of term $4 of epoch $3 the hash of its body and its answer,
-- if it was applied and is still kept.
-- $1 site, $2 source id, $6 how many batches are kept.
select s.epoch, s.term, s.nonce, s.batch, b.body_hash, b.answer
from cloud_meta.sources s
left join cloud_meta.batches b
    on b.site = s.site and b.source_id = s.source_id and b.slot = ($5 % $6)::smallint
        and (b.epoch, b.term, b.batch) = ($3, $4, $5)
where s.site = $1 and s.source_id = $2

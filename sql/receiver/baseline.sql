-- Records the time of a baseline request, under the source ''. $1 site. Writes cloud_meta.sources.
insert into cloud_meta.sources (site, source_id, epoch, term, nonce, batch)
values ($1, '', 0, 0, '', 0)
on conflict (site, source_id) do update set updated_at = now()

//! Says what is replicated, in code: which tables, which rows, which columns stay on the site.
//!
//! `cargo run --example own_catalogue`

use cloud_sync::{CloudSync, Entity};

fn main() -> Result<(), cloud_sync::Error> {
    let mut staff =
        Entity::new("staff", "tbl_staff", &["staff_id"]).file("photo", "photo_url", "photos", false);
    // These columns never leave the site.
    staff.exclude = vec!["password_hash".to_owned(), "face_embedding".to_owned()];
    let site = CloudSync::builder()
        .entities([
            Entity::new("rooms", "tbl_room", &["room_id"]),
            staff,
            // Backfill and sync look at the last 30 days only; what is older stays in the cloud.
            Entity::new("attendance", "tbl_attendance", &["attendance_id"]).retention(30),
        ])
        .build()?;
    for entity in site.entities() {
        println!("{} goes to /api/{}", entity.table, entity.path);
    }
    Ok(())
}

//! Says what is replicated, in code: which tables, which rows, which columns stay on the site.
//!
//! `cargo run --example own_catalogue`

use cloud_sync::{Catalogue, Entity};

fn main() -> Result<(), cloud_sync::Error> {
    let mut staff =
        Entity::new("staff", "tbl_staff", &["staff_id"]).file("photo", "photo_url", "photos", false);
    // These columns never leave the site.
    staff.exclude = vec!["password_hash".to_owned(), "face_embedding".to_owned()];
    // Parents come before the rows that refer to them.
    let catalogue = Catalogue::new(vec![
        Entity::new("rooms", "tbl_room", &["room_id"]),
        staff,
        // Backfill and sync look at the last 30 days only; what is older stays in the cloud.
        Entity::new("attendance", "tbl_attendance", &["attendance_id"]).retention(30),
    ])?;
    for entity in catalogue.entities() {
        println!("{} goes to /api/{}", entity.table, entity.path);
    }
    Ok(())
}

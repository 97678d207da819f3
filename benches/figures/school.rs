//! The school's real table: attendance, 12 columns, 3 foreign keys, 4 indexes and its key.

use crate::load::LoadTable;

/// The nine tables of the sample school.
pub(crate) const SCHEMA: &str = include_str!("../../sql/sample_school.sql");

/// The rows that attendance refers to.
const PARENTS: &str = "
insert into tbl_room (room_no, room_name) select 'R' || n, 'Lecture Room ' || n from generate_series(1, 20) n;
insert into tbl_camera (camera_name, room_no) select 'Camera ' || n, 'R' || n from generate_series(1, 20) n;
insert into tbl_faculty (faculty_fname, faculty_lname) select 'Maria', 'Santos ' || n \
from generate_series(1, 50) n;
insert into tbl_teaching_load (faculty_id, room_no, teaching_load_course_code)
    select 1 + n % 50, 'R' || 1 + n % 20, 'CS ' || n from generate_series(1, 200) n;
";

const ONE_ROW: &str = "insert into tbl_attendance_record (faculty_id, teaching_load_id, camera_id, \
     record_date, record_time_in, record_time_out, time_duration_seconds, record_status, record_remarks) \
     values (1 + floor(50 * random()), 1 + floor(200 * random()), 1 + floor(20 * random()), \
     date_trunc('day', now()), now(), now() + interval '50 minutes', 3000, 'Late', 'Came after the bell')";

/// Leaves a table its key alone, as the receiver's table has.
const WITHOUT_INDEXES: &str = "
do $$
declare
    index regclass;
begin
    for index in select indexrelid::regclass from pg_index
        where indrelid = 'tbl_attendance_record'::regclass and not indisprimary
    loop
        execute 'drop index ' || index;
    end loop;
end $$;
";

/// The table that the writers insert into. No entity has to be configured: the built-in catalogue has it.
pub(crate) fn attendance() -> LoadTable {
    LoadTable {
        name: "tbl_attendance_record".to_owned(),
        entity: "attendance_records".to_owned(),
        key: "record_id",
        one_row: ONE_ROW.to_owned(),
    }
}

/// The site's tables, and the rows that attendance refers to.
pub(crate) fn tables() -> String {
    format!("{SCHEMA}{PARENTS}")
}

/// The tables of a subscriber. Its table of attendance has no index but the key, as the receiver's; its
/// worker does not check foreign keys.
pub(crate) fn subscriber_tables() -> String {
    format!("{SCHEMA}{WITHOUT_INDEXES}")
}

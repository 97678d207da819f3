//! The people of the sample school, and the words in its rows.
//!
//! Everything is derived from the school's seed, so that the same seed always gives the same school.

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const FIRST_NAMES: [&str; 32] = [
    "Ana",
    "Benjamin",
    "Carmela",
    "Dominador",
    "Elena",
    "Felipe",
    "Gloria",
    "Hector",
    "Imelda",
    "Josefina",
    "Karlo",
    "Lourdes",
    "Manuel",
    "Natividad",
    "Oscar",
    "Perla",
    "Quirino",
    "Rosario",
    "Salvador",
    "Teresita",
    "Ulysses",
    "Violeta",
    "Wilfredo",
    "Ximena",
    "Ysabel",
    "Zenaida",
    "Andres",
    "Beatriz",
    "Crisanto",
    "Diwata",
    "Emilio",
    "Florencia",
];
const LAST_NAMES: [&str; 32] = [
    "Abad",
    "Bautista",
    "Cruz",
    "Domingo",
    "Escobar",
    "Fernandez",
    "Garcia",
    "Hernandez",
    "Ignacio",
    "Javier",
    "Katigbak",
    "Lopez",
    "Mendoza",
    "Navarro",
    "Ocampo",
    "Pascual",
    "Quizon",
    "Reyes",
    "Santos",
    "Torres",
    "Umali",
    "Villanueva",
    "Wenceslao",
    "Yap",
    "Zamora",
    "Aquino",
    "Buenaventura",
    "Castillo",
    "De Leon",
    "Enriquez",
    "Flores",
    "Guerrero",
];
/// The school's departments.
pub(super) const DEPARTMENTS: [&str; 7] = [
    "Mathematics",
    "Natural Sciences",
    "Languages",
    "Engineering",
    "Computing",
    "Education",
    "Business",
];
/// Course codes with their subjects.
pub(super) const COURSES: [(&str, &str); 12] = [
    ("MATH 101", "College Algebra"),
    ("MATH 214", "Differential Equations"),
    ("PHYS 110", "General Physics"),
    ("CHEM 105", "Inorganic Chemistry"),
    ("ENGL 120", "Academic Writing"),
    ("CSCI 130", "Programming I"),
    ("CSCI 245", "Databases"),
    ("ENGR 201", "Statics"),
    ("EDUC 150", "Classroom Assessment"),
    ("BUSI 115", "Principles of Accounting"),
    ("HIST 100", "Readings in History"),
    ("PHED 101", "Physical Fitness"),
];
/// Days with classes.
pub(super) const DAYS: [&str; 6] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
/// Reasons for a leave, with the leave's type.
pub(super) const LEAVE_REASONS: [(&str, &str); 6] = [
    ("Influenza", "Sick"),
    ("Dental surgery", "Sick"),
    ("Family wedding", "Personal"),
    ("House repair", "Emergency"),
    ("Research congress", "Official"),
    ("Birth of a child", "Parental"),
];
/// Reasons for leaving the campus for some hours.
pub(super) const PASS_REASONS: [&str; 6] = [
    "Bank errand",
    "Clinic visit",
    "Meeting at the city hall",
    "Parent conference",
    "Supplies for the laboratory",
    "Car trouble",
];
/// The registrar's decisions.
pub(super) const DECISIONS: [&str; 4] = ["Approved", "Approved", "Pending", "Denied"];

/// One faculty.
pub(super) struct Person {
    /// Given name.
    pub(super) first: &'static str,
    /// Middle name.
    pub(super) middle: &'static str,
    /// Family name.
    pub(super) last: &'static str,
    /// Department.
    pub(super) department: &'static str,
}

impl Person {
    /// The faculty with this id in the school of this seed.
    pub(super) fn new(seed: u64, faculty: i64) -> Self {
        let mut rng = rng_for(seed, "person", faculty);
        Self {
            first: pick(&FIRST_NAMES, &mut rng),
            middle: pick(&LAST_NAMES, &mut rng),
            last: pick(&LAST_NAMES, &mut rng),
            department: pick(&DEPARTMENTS, &mut rng),
        }
    }

    /// Given name and family name.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.first, self.last)
    }
}

/// Picks one of the choices, which must not be empty.
pub(super) fn pick<T: Copy>(choices: &[T], rng: &mut StdRng) -> T {
    *choices.choose(rng).unwrap_or(&choices[0])
}

/// The random numbers for one thing of the school. They follow from the school's seed, the kind of thing, and
/// its number.
pub(super) fn rng_for(seed: u64, kind: &str, number: i64) -> StdRng {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&seed.to_le_bytes())
        .update(&number.to_le_bytes())
        .update(kind.as_bytes());
    let hash = hasher.finalize();
    let seed = (hash.as_bytes()[..8].iter()).fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    StdRng::seed_from_u64(seed)
}

/// A row's age in seconds: below `retention` days if it is `retained`, else above that, up to `oldest` days.
/// No age is within six hours of the limit, so that no row passes it during a demo of some hours.
pub(super) fn age(retention: i64, oldest: i64, retained: bool, rng: &mut StdRng) -> i64 {
    const DAY: i64 = 86_400;
    if retained {
        rng.random_range(600..retention * DAY - DAY / 4)
    } else {
        rng.random_range(retention * DAY + DAY / 4..oldest * DAY)
    }
}

//! Who works at the sample school, and the words that its rows are filled with.

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const FIRST: [&str; 32] = [
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
const LAST: [&str; 32] = [
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
/// Days on which there are classes.
pub(super) const DAYS: [&str; 6] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
/// Why someone is on leave, with the leave's type.
pub(super) const LEAVE_REASONS: [(&str, &str); 6] = [
    ("Influenza", "Sick"),
    ("Dental surgery", "Sick"),
    ("Family wedding", "Personal"),
    ("House repair", "Emergency"),
    ("Research congress", "Official"),
    ("Birth of a child", "Parental"),
];
/// Why someone leaves the campus for some hours.
pub(super) const PASS_REASONS: [&str; 6] = [
    "Bank errand",
    "Clinic visit",
    "Meeting at the city hall",
    "Parent conference",
    "Supplies for the laboratory",
    "Car trouble",
];
/// What the registrar decides.
pub(super) const VERDICTS: [&str; 4] = ["Approved", "Approved", "Pending", "Denied"];

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
    pub(super) fn of(seed: u64, faculty: i64) -> Self {
        let mut rng = rng_for(seed, "person", faculty);
        Self {
            first: pick(&FIRST, &mut rng),
            middle: pick(&LAST, &mut rng),
            last: pick(&LAST, &mut rng),
            department: pick(&DEPARTMENTS, &mut rng),
        }
    }

    /// Given name and family name.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.first, self.last)
    }
}

/// One of the choices.
pub(super) fn pick<T: Copy>(choices: &[T], rng: &mut StdRng) -> T {
    *choices.choose(rng).unwrap_or(&choices[0])
}

/// A number that follows from the school's seed, a kind of thing and the thing's number.
pub(super) fn seed_for(seed: u64, kind: &str, number: i64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&seed.to_le_bytes())
        .update(&number.to_le_bytes())
        .update(kind.as_bytes());
    let hash = hasher.finalize();
    hash.as_bytes()[..8]
        .iter()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// The dice for one thing of the school.
pub(super) fn rng_for(seed: u64, kind: &str, number: i64) -> StdRng {
    StdRng::seed_from_u64(seed_for(seed, kind, number))
}

/// An age in seconds: `inside`, within `window` days, else beyond it, up to `oldest` days. Six hours on
/// either side of the window's end stay free, so that a demo of some hours never sees a row pass it.
pub(super) fn age(window: i64, oldest: i64, inside: bool, rng: &mut StdRng) -> i64 {
    const DAY: i64 = 86_400;
    if inside {
        rng.random_range(600..window * DAY - DAY / 4)
    } else {
        rng.random_range(window * DAY + DAY / 4..oldest * DAY)
    }
}

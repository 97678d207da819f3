//! The codec between PostgreSQL's values and the wire's JSON.
//!
//! [`to_json`] is what the site sends: the binary form of a value as JSON text. [`from_json`] is the way back
//! at the receiver: JSON text as the binary form, for the types that most columns have and for values in the
//! usual form; all others it leaves to PostgreSQL's own input functions. Each reads what the other writes;
//! the tests here say so.
//!
//! Forms: timestamps are ISO 8601 and have an offset if their type has one, `numeric` and 64-bit integers are
//! exact, `bytea` is base64, SQL's NULL is `null`. Numbers of the binary form are big-endian.

pub(crate) mod calendar;
pub(crate) mod from_json;
pub(crate) mod to_json;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::calendar::MICROS_A_DAY;
    use super::from_json::BinaryType;
    use super::to_json::{BINARY_OIDS, push_binary};

    fn json(oid: u32, field: &[u8]) -> Option<String> {
        let mut json = Vec::new();
        push_binary(&mut json, oid, field)?;
        String::from_utf8(json).ok()
    }

    /// The binary form that the receiver makes of the JSON that the site makes of this binary form.
    fn there_and_back(oid: u32, of: BinaryType, field: &[u8]) -> Option<Vec<u8>> {
        let mut back = Vec::new();
        of.push(&mut back, &json(oid, field)?)?;
        Some(back)
    }

    const YEAR_1_TO_9999: std::ops::Range<i64> = -730_119..2_921_940;

    proptest! {
        #[test]
        fn integers_and_booleans_come_back(number: i64, truth: bool) {
            for (oid, of, field) in [
                (20, BinaryType::BigInt, number.to_be_bytes().to_vec()),
                (23, BinaryType::Integer, (number as i32).to_be_bytes().to_vec()),
                (21, BinaryType::SmallInt, (number as i16).to_be_bytes().to_vec()),
                (16, BinaryType::Boolean, vec![u8::from(truth)]),
            ] {
                prop_assert_eq!(there_and_back(oid, of, &field), Some(field));
            }
        }

        #[test]
        fn dates_and_times_come_back(days in YEAR_1_TO_9999, micros in 0..MICROS_A_DAY, whole: bool) {
            let time = if whole { micros / 1_000_000 * 1_000_000 } else { micros };
            let moment = (days * MICROS_A_DAY + time).to_be_bytes().to_vec();
            for (oid, of, field) in [
                (1082, BinaryType::Date, (days as i32).to_be_bytes().to_vec()),
                (1083, BinaryType::Time, time.to_be_bytes().to_vec()),
                (1114, BinaryType::Timestamp, moment.clone()),
                (1184, BinaryType::TimestampTz, moment),
            ] {
                prop_assert_eq!(there_and_back(oid, of, &field), Some(field));
            }
        }

        #[test]
        fn texts_and_bytes_come_back(text: String, bytes: Vec<u8>, id: [u8; 16]) {
            prop_assert_eq!(there_and_back(25, BinaryType::Text, text.as_bytes()), Some(text.into_bytes()));
            prop_assert_eq!(there_and_back(17, BinaryType::Bytea, &bytes), Some(bytes));
            prop_assert_eq!(there_and_back(2950, BinaryType::Uuid, &id), Some(id.to_vec()));
        }

        #[test]
        fn numbers_come_back(text in "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?") {
            let mut field = Vec::new();
            BinaryType::Numeric.push(&mut field, &text).unwrap();
            let shown = json(1700, &field).unwrap();
            // PostgreSQL knows no negative zero.
            let is_zero = !text.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
            let expected = if is_zero { text.trim_start_matches('-') } else { &text };
            prop_assert_eq!(&shown, expected);
            prop_assert_eq!(there_and_back(1700, BinaryType::Numeric, &field), Some(field));
        }

        #[test]
        fn no_bytes_make_the_codec_panic(bytes: Vec<u8>, text: String, digits in "\"?[-0-9:.TZ+ ]{0,32}\"?") {
            for oid in BINARY_OIDS {
                let _ = json(oid, &bytes);
            }
            for of in BinaryType::ALL {
                for text in [&text, &digits] {
                    let _ = of.push(&mut Vec::new(), text);
                }
            }
        }
    }
}

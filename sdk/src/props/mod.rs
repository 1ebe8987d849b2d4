/// Values written as JSON text within the protocol's limits.
mod watch;

use std::borrow::Cow;
use std::fmt;

use eventbucket_protocol::Properties;
use eventbucket_protocol::limits::{EVENT_BYTES_MAX, KEY_CHARS_MAX, KEYS_MAX};
use serde::Serialize;

use self::watch::Written;

/// The properties of an event, in the order they were added; a key added again replaces its value.
///
/// A value is anything that serde can write as JSON: text, numbers, booleans, options, lists, maps with text keys,
/// own types. NaN and infinity become `null`. Values are written as JSON text at once, so nothing is boxed or copied
/// later. What JSON can't hold, and what breaks a limit of the protocol, makes the event invalid: `try_capture` refuses it, or
/// it is dropped, counted and told to `on_error`.
///
/// ```
/// use eventbucket::{Props, props};
///
/// let mut traits = props! { name: "Ada", plan: "pro" };
/// traits.insert("plan", "team");
/// assert_eq!(traits.to_json(), r#"{"name":"Ada","plan":"team"}"#);
/// ```
#[derive(Clone, Default)]
pub struct Props {
    /// `{"key":value,"key":value` without the closing brace; empty when there are no members.
    json: Vec<u8>,
    members: Vec<Member>,
    /// The keys of all members, those of inner objects included.
    keys: usize,
    fault: Option<Box<str>>,
}

/// Where a member stands in the text: `"key":value`.
#[derive(Clone, Copy)]
struct Member {
    start: u32,
    key_end: u32,
    end: u32,
    /// Its own key and those of inner objects; at most 512, so that two bytes hold them.
    keys: u16,
}

/// Twice the limit of an event, so that a replaced large value doesn't count against the new one; beyond it nothing
/// more is written, which also keeps offsets within 32 bits.
const JSON_BYTES_MAX: usize = 2 * EVENT_BYTES_MAX;

/// Room for the text of a typical event: 8 properties take about 200 bytes.
const JSON_BYTES_TYPICAL: usize = 192;
const MEMBERS_TYPICAL: usize = 8;

impl Props {
    /// Makes an empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { json: Vec::new(), members: Vec::new(), keys: 0, fault: None }
    }

    /// Adds a property, or replaces the one of that key.
    pub fn insert(&mut self, key: impl AsRef<str>, value: impl Serialize) {
        if self.json.is_empty() {
            self.json.reserve(JSON_BYTES_TYPICAL);
            self.members.reserve(MEMBERS_TYPICAL);
        }
        let before = self.json.len();
        self.json.push(if before == 0 { b'{' } else { b',' });
        let start = self.json.len();
        // A key is text, which always can be written; the value decides.
        let key_end = serde_json::to_writer(&mut self.json, key.as_ref()).map(|()| self.json.len());
        self.json.push(b':');
        let written = key_end.and_then(|key_end| Ok((key_end, watch::write(&mut self.json, &value)?)));
        match written {
            Ok(_) if self.json.len() > JSON_BYTES_MAX => {
                self.give_up(before, key.as_ref(), &"it takes too many bytes");
            }
            Ok((key_end, written)) => match self.check_member(start, key_end, key.as_ref(), &written) {
                Ok(()) => self.close_member(start, key_end, 1 + written.keys),
                Err(why) => self.give_up(before, key.as_ref(), &why),
            },
            Err(error) => self.give_up(before, key.as_ref(), &error),
        }
    }

    /// Checks what writing the value couldn't: its key, and text that was JSON already.
    fn check_member(
        &self,
        start: usize,
        key_end: usize,
        key: &str,
        written: &Written,
    ) -> Result<(), Cow<'static, str>> {
        if key.is_empty() || (key.len() > KEY_CHARS_MAX && key.chars().count() > KEY_CHARS_MAX) {
            return Err(watch::BAD_KEY.into());
        }
        // Most keys are written as they are, between quotes.
        if key_end - start != key.len() + 2 && key.contains('\0') {
            return Err(watch::NUL.into());
        }
        if written.has_raw {
            let member = std::str::from_utf8(&self.json[start..]).expect("serde_json writes UTF-8");
            Properties::parse(&format!("{{{member}}}")).map_err(|reason| reason.message)?;
        }
        Ok(())
    }

    /// Removes a property; says whether there was one.
    pub fn remove(&mut self, key: impl AsRef<str>) -> bool {
        match self.position(&encoded_key(key.as_ref())) {
            Some(index) => {
                self.cut(index);
                true
            }
            None => false,
        }
    }

    /// Says whether there is a property of that key.
    #[must_use]
    pub fn contains(&self, key: impl AsRef<str>) -> bool {
        self.position(&encoded_key(key.as_ref())).is_some()
    }

    /// Counts the properties.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Says whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns them as the text of a JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        self.clone().into_json()
    }

    /// Adds the members of another set whose keys aren't here, by their text.
    pub(crate) fn merge_missing(&mut self, other: &Self) {
        for member in &other.members {
            let (start, key_end, end) = member.bounds();
            if self.position(&other.json[start..key_end]).is_some() {
                continue;
            }
            self.json.push(if self.json.is_empty() { b'{' } else { b',' });
            let moved = self.json.len();
            self.json.extend_from_slice(&other.json[start..end]);
            self.keys += usize::from(member.keys);
            self.members.push(Member::new(moved, moved + (key_end - start), self.json.len(), member.keys));
        }
    }

    /// Says what couldn't be written, or which limit all of them break together.
    ///
    /// # Errors
    /// In words for whoever captured them.
    pub(crate) fn check(&self) -> Result<(), Cow<'_, str>> {
        match &self.fault {
            Some(fault) => Err((&**fault).into()),
            None if self.keys > KEYS_MAX => Err(watch::too_many_keys().into()),
            None => Ok(()),
        }
    }

    /// The bytes of their text.
    pub(crate) fn text_bytes(&self) -> usize {
        self.json.len()
    }

    /// The bytes they take on the heap, room for growth included.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.json.capacity() + self.members.capacity() * size_of::<Member>()
    }

    pub(crate) fn into_properties(self) -> Properties {
        if self.members.is_empty() { Properties::default() } else { Properties::trusted(self.into_json()) }
    }

    fn into_json(mut self) -> String {
        if self.json.is_empty() {
            self.json.push(b'{');
        }
        self.json.push(b'}');
        String::from_utf8(self.json).expect("serde_json writes UTF-8")
    }

    fn close_member(&mut self, start: usize, key_end: usize, keys: usize) {
        let twice = self.position(&self.json[start..key_end]);
        self.keys += keys;
        let keys = u16::try_from(keys).expect("a value with more keys isn't written to its end");
        self.members.push(Member::new(start, key_end, self.json.len(), keys));
        if let Some(index) = twice {
            self.cut(index);
        }
    }

    fn give_up(&mut self, before: usize, key: &str, why: &dyn fmt::Display) {
        self.json.truncate(before);
        // What was written may be huge, and its room would count against the queue.
        self.json.shrink_to(JSON_BYTES_TYPICAL);
        self.fault = Some(format!("property {key:?} can't be sent: {why}").into());
    }

    /// Few events have more than a dozen properties, and keys of another length are told apart at once.
    fn position(&self, encoded_key: &[u8]) -> Option<usize> {
        self.members.iter().position(|member| {
            let (start, key_end, _) = member.bounds();
            &self.json[start..key_end] == encoded_key
        })
    }

    /// Takes a member out of the text, with the comma before it or, for the first one, after it.
    fn cut(&mut self, index: usize) {
        let member = self.members.remove(index);
        let (start, _, end) = member.bounds();
        self.keys -= usize::from(member.keys);
        if self.members.is_empty() {
            self.json.clear();
            return;
        }
        let gone = if index == 0 { start..end + 1 } else { start - 1..end };
        let by = gone.len();
        self.json.drain(gone);
        for member in &mut self.members[index..] {
            let (start, key_end, end) = member.bounds();
            *member = Member::new(start - by, key_end - by, end - by, member.keys);
        }
    }
}

impl Member {
    fn new(start: usize, key_end: usize, end: usize, keys: u16) -> Self {
        let narrow = |offset: usize| u32::try_from(offset).expect("the text is bounded far below 4 GiB");
        Self { start: narrow(start), key_end: narrow(key_end), end: narrow(end), keys }
    }

    const fn bounds(self) -> (usize, usize, usize) {
        (self.start as usize, self.key_end as usize, self.end as usize)
    }
}

fn encoded_key(key: &str) -> Vec<u8> {
    serde_json::to_vec(key).expect("text can always be written as JSON")
}

impl fmt::Debug for Props {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_json())
    }
}

impl PartialEq for Props {
    fn eq(&self, other: &Self) -> bool {
        self.json == other.json
    }
}

impl<K: AsRef<str>, V: Serialize> Extend<(K, V)> for Props {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, properties: I) {
        for (key, value) in properties {
            self.insert(key, value);
        }
    }
}

impl<K: AsRef<str>, V: Serialize> FromIterator<(K, V)> for Props {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(properties: I) -> Self {
        let mut props = Self::new();
        props.extend(properties);
        props
    }
}

impl<K: AsRef<str>, V: Serialize, const N: usize> From<[(K, V); N]> for Props {
    fn from(properties: [(K, V); N]) -> Self {
        properties.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_middle_and_last_can_be_replaced_and_removed() {
        let full = || Props::from([("a", 1), ("b", 2), ("c", 3)]);
        for (key, json) in [
            ("a", r#"{"b":2,"c":3,"a":9}"#),
            ("b", r#"{"a":1,"c":3,"b":9}"#),
            ("c", r#"{"a":1,"b":2,"c":9}"#),
        ] {
            let mut props = full();
            props.insert(key, 9);
            assert_eq!(props.to_json(), json);
        }
        let mut props = full();
        assert!(props.remove("a") && props.remove("c") && !props.remove("x"));
        assert_eq!(props.to_json(), r#"{"b":2}"#);
        assert!(props.remove("b"));
        assert_eq!(props.to_json(), "{}");
    }

    #[test]
    fn own_values_win_over_the_context() {
        let mut props = Props::from([("service", "own")]);
        props.merge_missing(&Props::from([("service", "shared"), ("region", "eu")]));
        assert_eq!(props.to_json(), r#"{"service":"own","region":"eu"}"#);
        let mut empty = Props::new();
        empty.merge_missing(&props);
        assert_eq!(empty, props);
    }

    #[test]
    fn what_json_cannot_hold_is_remembered_and_leaves_the_rest_whole() {
        let mut props = Props::from([("ok", f64::NAN)]);
        assert_eq!((props.to_json().as_str(), props.check()), (r#"{"ok":null}"#, Ok(())));
        props.insert("map", HashMap::from([(vec![1], 2)]));
        props.insert("after", true);
        assert_eq!(props.to_json(), r#"{"ok":null,"after":true}"#);
        assert!(props.check().unwrap_err().contains("\"map\""));
    }

    proptest! {
        #[test]
        fn any_sequence_of_inserts_and_removes_is_a_map(
            steps in prop::collection::vec((prop_oneof!["[a-d]", "[^\\x00]{1,3}"], prop::option::of(any::<i32>())), 0..40)
        ) {
            let (mut props, mut model) = (Props::new(), BTreeMap::new());
            for (key, value) in steps {
                match value {
                    Some(value) => {
                        props.insert(&key, value);
                        model.insert(key, value);
                    }
                    None => prop_assert_eq!(props.remove(&key), model.remove(&key).is_some()),
                }
            }
            let read: BTreeMap<String, i32> = serde_json::from_str(&props.to_json()).unwrap();
            prop_assert_eq!((props.len(), props.keys), (model.len(), model.len()));
            prop_assert_eq!(read, model);
        }
    }
}

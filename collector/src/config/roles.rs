use std::fmt;

use super::keys::nearest;

/// One thing a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Takes events in over HTTP.
    Edge,
    /// Appends accepted batches to the log.
    Storage,
    /// Turns the log into counts.
    Insight,
    /// Tells people and other systems.
    Notify,
    /// Answers readers over HTTP.
    Query,
}

impl Role {
    /// Every role, in the order of flow.
    pub const ALL: [Self; 5] = [Self::Edge, Self::Storage, Self::Insight, Self::Notify, Self::Query];

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Storage => "storage",
            Self::Insight => "insight",
            Self::Notify => "notify",
            Self::Query => "query",
        }
    }
}

/// What a process does: at least one role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles([bool; Role::ALL.len()]);

impl Default for Roles {
    fn default() -> Self {
        Self([true; Role::ALL.len()])
    }
}

impl Roles {
    /// Reads a list like `edge,query`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut roles = [false; Role::ALL.len()];
        for name in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let place = Role::ALL.iter().position(|role| role.name() == name);
            roles[place.ok_or_else(|| unknown(name))?] = true;
        }
        if roles.contains(&true) { Ok(Self(roles)) } else { Err(format!("it names no role: {}", all())) }
    }

    /// Says whether the process has this role.
    #[must_use]
    pub fn has(self, role: Role) -> bool {
        self.0[role as usize]
    }

    /// Says whether the process does everything.
    #[must_use]
    pub fn all(self) -> bool {
        self == Self::default()
    }

    /// The roles it has.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.has(*role))
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Role::name).collect::<Vec<_>>().join(","))
    }
}

fn all() -> String {
    format!("write one or more of {}", Roles::default())
}

fn unknown(name: &str) -> String {
    let hint = nearest(name, Role::ALL.into_iter().map(Role::name))
        .map_or_else(String::new, |known| format!("; did you mean `{known}`?"));
    format!("`{name}` isn't a role: {}{hint}", all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_roles_is_read_and_written_in_the_order_of_flow() {
        let roles = Roles::parse("query, edge").unwrap();
        assert_eq!(roles.to_string(), "edge,query");
        assert!(roles.has(Role::Edge) && !roles.has(Role::Storage) && !roles.all());
        assert!(Roles::parse("edge,storage,insight,notify,query").unwrap().all());
    }

    #[test]
    fn what_is_no_role_is_told_with_the_nearest() {
        let told = Roles::parse("edge,storag").unwrap_err();
        assert!(told.contains("`storag` isn't a role") && told.contains("did you mean `storage`?"), "{told}");
        assert!(Roles::parse(" , ").unwrap_err().contains("names no role"));
    }
}

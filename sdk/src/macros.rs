/// Builds an [`Event`](crate::Event): its name, then fields and properties.
///
/// `id`, `user`, `time`, `description`, `correlation` and `stream` set the field of that name; any other key, and any
/// key in quotes, is a property.
///
/// ```
/// use eventbucket::event;
///
/// let event = event!("order_paid", user: "u-17", plan: "pro", "amount.eur": 12.5);
/// assert_eq!(event.user_id(), Some("u-17"));
/// assert_eq!(event.properties().to_json(), r#"{"plan":"pro","amount.eur":12.5}"#);
/// ```
#[macro_export]
macro_rules! event {
    ($name:expr $(,)?) => { $crate::Event::new($name) };
    ($name:expr, $($rest:tt)+) => { $crate::event!(@field $crate::Event::new($name), $($rest)+) };
    (@field $event:expr $(,)?) => { $event };
    (@field $event:expr, id: $value:expr $(, $($rest:tt)*)?) =>
        { $crate::event!(@field $event.id($value), $($($rest)*)?) };
    (@field $event:expr, user: $value:expr $(, $($rest:tt)*)?) =>
        { $crate::event!(@field $event.user($value), $($($rest)*)?) };
    (@field $event:expr, time: $value:expr $(, $($rest:tt)*)?) =>
        { $crate::event!(@field $event.time($value), $($($rest)*)?) };
    (@field $event:expr, description: $value:expr $(, $($rest:tt)*)?) =>
        { $crate::event!(@field $event.description($value), $($($rest)*)?) };
    (@field $event:expr, correlation: $value:expr $(, $($rest:tt)*)?) =>
        { $crate::event!(@field $event.correlation($value), $($($rest)*)?) };
    (@field $event:expr, stream: $value:expr $(, $($rest:tt)*)?) =>
        { $crate::event!(@field $event.stream($value), $($($rest)*)?) };
    (@field $event:expr, $key:ident : $value:expr $(, $($rest:tt)*)?) =>
        { $crate::event!(@field $event.prop(stringify!($key), $value), $($($rest)*)?) };
    (@field $event:expr, $key:literal : $value:expr $(, $($rest:tt)*)?) =>
        { $crate::event!(@field $event.prop($key, $value), $($($rest)*)?) };
}

/// Builds [`Props`](crate::Props): keys as words or in quotes, values of any type serde can write.
///
/// ```
/// let traits = eventbucket::props! { name: "Ada", "sign-up year": 2026 };
/// assert_eq!(traits.len(), 2);
/// ```
#[macro_export]
macro_rules! props {
    () => { $crate::Props::new() };
    (@key $key:ident) => { stringify!($key) };
    (@key $key:literal) => { $key };
    ($($key:tt : $value:expr),+ $(,)?) => {{
        let mut props = $crate::Props::new();
        $(props.insert($crate::props!(@key $key), $value);)+
        props
    }};
}

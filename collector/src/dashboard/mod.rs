//! The page at `/`: says that the collector is running, how to send the first event, and shows it arriving. Plain HTML, CSS
//! and one ES module, all within the binary and nothing from elsewhere.

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// The page may load its own files and talk to its own collector, and nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Each file of the page: path, media type, content.
const FILES: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("page.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page.js")),
    ("/icon.svg", "image/svg+xml", include_str!("icon.svg")),
];

/// The paths of the page.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, media_type, content)| {
        router.route(path, get(move || async move { file(media_type, content) }))
    })
}

fn file(media_type: &'static str, content: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 4] = [
        (CONTENT_TYPE, HeaderValue::from_static(media_type)),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // The next version of the collector brings the next version of the page.
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, content).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_keeps_to_its_own_policy() {
        let [(_, _, html), _, (_, _, script), _] = FILES;
        for forbidden in ["<script>", "<style", "style=\"", "onclick", "http://", "https://"] {
            assert!(!html.contains(forbidden), "{forbidden} in the page");
        }
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"]
        {
            assert!(!script.contains(forbidden), "{forbidden} in the script");
        }
        for (path, _, _) in &FILES[1..] {
            assert!(html.contains(&format!("\"{path}\"")), "{path} is not used by the page");
        }
    }

    #[test]
    fn every_element_the_script_looks_for_is_there() {
        let [(_, _, html), _, (_, _, script), _] = FILES;
        let asked: Vec<&str> =
            script.split("element(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(asked.len() > 5, "{asked:?}");
        for id in asked {
            assert!(html.contains(&format!("id=\"{id}\"")), "#{id} is not in the page");
        }
    }
}

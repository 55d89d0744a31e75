//! The description of the operator's API, made of the handlers and types themselves.

use actix_web::{HttpRequest, HttpResponse};
use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};

use super::{Refused, acts, enter, events, probe, session, stories};
use crate::journal::Event;

#[derive(OpenApi)]
#[openapi(
    info(title = "Stagedoor operator's API", description = "Everything that the page at /admin shows and does.", license(name = "Apache-2.0", identifier = "Apache-2.0")),
    paths(
        super::state, super::history, events::stream, stories::list, stories::one, session::show, session::begin, session::end,
        acts::restart, acts::drain, acts::resume, acts::reset, acts::weight, acts::cancel, probe::test
    ),
    components(schemas(Event)),
    modifiers(&Schemes, &Guessing),
    security(("token" = []), ("session" = []), ())
)]
struct Description;

struct Schemes;

impl utoipa::Modify for Schemes {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let components = description.components.get_or_insert_with(Default::default);
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("`admin.token` or `admin.readToken`"));
        components.add_security_scheme("token", SecurityScheme::Http(token.build()));
        components.add_security_scheme("session", SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new("stagedoor_admin"))));
    }
}

/// Whoever may be refused for a wrong token may be refused for too many of them.
struct Guessing;

impl utoipa::Modify for Guessing {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        for item in description.paths.paths.values_mut() {
            for operation in [&mut item.get, &mut item.post, &mut item.delete].into_iter().flatten() {
                let responses = &mut operation.responses.responses;
                if let Some(refused) = responses.get("401").cloned() {
                    responses.insert("429".to_owned(), refused);
                }
            }
        }
    }
}

/// `GET /admin/api/openapi.json`.
pub(super) async fn show(request: HttpRequest) -> Result<HttpResponse, Refused> {
    enter(&request, false).await?;
    Ok(HttpResponse::Ok().json(Description::openapi()))
}

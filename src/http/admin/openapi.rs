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
    modifiers(&Schemes),
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

/// `GET /admin/api/openapi.json`.
pub(super) async fn show(request: HttpRequest) -> Result<HttpResponse, Refused> {
    enter(&request, false).await?;
    Ok(HttpResponse::Ok().json(Description::openapi()))
}

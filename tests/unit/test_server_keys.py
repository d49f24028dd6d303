"""Who may ask what: keys in each of their headers, what is open, the admin key, browsers and proxies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fake_engine import FakeLoaded
from pagoda.config import ServerSettings
from pagoda.errors import ConfigError
from pagoda.server import routes
from pagoda.server.app import create_app
from serving import Served, serving


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded(), api_keys=("alpha", "beta"), admin_key="root") as served:
        yield served


RIGHT = [
    {"Authorization": "Bearer alpha"},
    {"Authorization": "bearer beta"},
    {"Authorization": "Bearer   alpha"},
    {"X-Api-Key": "beta"},
    {"X-Api-Key": "alpha", "Authorization": "Bearer something-of-a-proxy"},
    {"X-Api-Key": "wrong", "Authorization": "Bearer alpha"},
    {"Authorization": "Bearer root"},
    {"X-Api-Key": "root"},
]
WRONG: list[dict[str, str | bytes]] = [
    {},
    {"Authorization": b"Bearer \xff"},
    {"Authorization": "Bearer gamma"},
    {"Authorization": "Bearer alph"},
    {"Authorization": "Bearer"},
    {"Authorization": "alpha"},
    {"Authorization": "Basic alpha"},
    {"X-Api-Key": ""},
    {"X-Api-Key": "Bearer alpha"},
]


@pytest.mark.parametrize("headers", RIGHT)
def test_right_keys(api: Served, headers: dict[str, str]) -> None:
    assert api.client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", WRONG)
@pytest.mark.parametrize("path", ["/v1/models", "/version", "/metrics", "/plan", "/openapi.json", "/nothing"])
def test_wrong_keys(api: Served, path: str, headers: dict[str, str | bytes]) -> None:
    response = api.client.get(path, headers=headers)  # type: ignore[arg-type]
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "x-request-id" in response.headers


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_orchestrators_have_no_key(api: Served, path: str) -> None:
    assert api.client.get(path).status_code == 200
    assert api.client.head(path).status_code == 200


def test_metrics_are_open_where_asked() -> None:
    with serving(FakeLoaded(), api_keys=("alpha",), metrics_open=True) as served:
        assert served.client.get("/metrics").status_code == 200
        assert served.client.get("/v1/models").status_code == 401


@pytest.mark.parametrize("api_keys", [("alpha",), ()])
def test_metrics_have_a_key_of_their_own(api_keys: tuple[str, ...]) -> None:
    with serving(FakeLoaded(), api_keys=api_keys, admin_key="root", metrics_key="scrape") as served:

        def status(path: str, key: str | None) -> int:
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            return served.client.get(path, headers=headers).status_code

        assert [status("/metrics", key) for key in ("scrape", "root", None, "other")] == [200, 200, 401, 401]
        assert status("/v1/models", "scrape") == (401 if api_keys else 200)
        assert [status("/metrics", key) for key in api_keys] == [200] * len(api_keys)


def test_metrics_are_open_or_have_a_key() -> None:
    with pytest.raises(ConfigError, match=r"--metrics-open .* --metrics-key"):
        create_app(FakeLoaded(), ServerSettings(metrics_open=True, metrics_key="scrape"))


@pytest.mark.parametrize(("admin_key", "status"), [(None, 403), ("root", 200)])
def test_what_changes_the_server_needs_the_admin_key(
    admin_key: str | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def change(request: Request) -> Response:
        routes.check_admin(request)
        return Response("changed")

    monkeypatch.setattr(routes, "ROUTES", [*routes.ROUTES, Route("/change", change, methods=["POST"])])
    with serving(FakeLoaded(), admin_key=admin_key) as served:
        assert served.client.post("/change").status_code == 403
        assert served.client.post("/change", headers={"X-Api-Key": "other"}).status_code == 403
        assert served.client.post("/change", headers={"Authorization": "Bearer root"}).status_code == status
        assert served.client.get("/v1/models").status_code == 200  # the admin key alone closes nothing


def test_cors_is_off_by_default() -> None:
    with serving(FakeLoaded()) as served:
        assert "access-control-allow-origin" not in served.client.get("/health", headers={"Origin": "http://a"}).headers


@pytest.mark.parametrize(("origins", "allowed"), [(("*",), "*"), (("http://a", "http://b"), "http://a")])
def test_cors(origins: tuple[str, ...], allowed: str) -> None:
    """The Fetch standard, section 3.2: a preflight brings no key, and errors have to be readable too."""
    with serving(FakeLoaded(), api_keys=("alpha",), cors_origins=origins) as served:
        asked = {
            "Origin": "http://a",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        }
        preflight = served.client.options("/v1/chat/completions", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == allowed
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        refused = served.client.get("/v1/models", headers={"Origin": "http://a"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == allowed
        if "*" not in origins:
            foreign = served.client.options("/v1/models", headers=asked | {"Origin": "http://evil"})
            assert foreign.status_code == 400
            assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.parametrize(
    ("path", "allow"), [("/v1/completions", "POST, OPTIONS"), ("/v1/models", "GET, HEAD, OPTIONS")]
)
def test_options_say_what_is_allowed(path: str, allow: str) -> None:
    with serving(FakeLoaded()) as served:
        response = served.client.options(path)
        assert response.status_code == 204
        assert sorted(response.headers["allow"].split(", ")) == sorted(allow.split(", "))
        assert served.client.head("/v1/completions").status_code == 405


FORWARDED = {"X-Forwarded-Prefix": "/llm"}


@pytest.mark.parametrize(
    ("settings", "path", "headers", "location"),
    [
        ({}, "/v1/models/", {}, "/v1/models"),
        ({"root_path": "/llm"}, "/v1/models/", {}, "/llm/v1/models"),  # a proxy that takes the prefix off
        ({"root_path": "/llm/"}, "/llm/v1/models/", {}, "/llm/v1/models"),  # and one that does not
        ({"root_path": "/a/b"}, "/a/b/v1/models/?x=1", {}, "/a/b/v1/models?x=1"),
        ({}, "/v1/models/", FORWARDED, "/llm/v1/models"),
        ({}, "/llm/v1/models/", FORWARDED, "/llm/v1/models"),
        ({"root_path": "/mine"}, "/v1/models/", FORWARDED, "/mine/v1/models"),
        ({}, "/v1/models/", {"X-Forwarded-Prefix": "//evil.example"}, "/v1/models"),
        ({}, "/v1/models/", {"X-Forwarded-Prefix": "https://evil.example"}, "/v1/models"),
        ({}, "/v1/models/", {"X-Forwarded-Prefix": "/"}, "/v1/models"),
    ],
)
def test_redirects_behind_a_prefix(settings: dict[str, str], path: str, headers: dict[str, str], location: str) -> None:
    with serving(FakeLoaded(), **settings) as served:
        response = served.client.get(path, headers=headers)
        assert response.status_code == 307
        assert response.headers["location"] == location


def test_all_of_the_server_lies_behind_the_prefix() -> None:
    with serving(FakeLoaded(), root_path="/llm", api_keys=("k",)) as served:
        key = {"X-Api-Key": "k"}
        assert served.client.get("/llm/health").status_code == 200
        assert served.client.get("/llm/v1/models", headers=key).status_code == 200
        assert served.client.get("/llmv1/models", headers=key).status_code == 404
        assert 'href="openapi.json"' in served.client.get("/llm/docs").text  # of the same folder, whatever it is
        assert served.client.get("/llm/openapi.json", headers=key).json()["servers"] == [{"url": "/llm"}]

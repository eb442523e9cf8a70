import base64
import json
import random
import string
import zlib
from collections.abc import Sequence

import pytest

from guardrails.checksums_tokens import crc32_base62, passes
from guardrails.detectors.secrets import BLOCK_CAP, SecretsDetector, entropy
from guardrails.gitleaks import SHIPPED, Allowed, Rule, compiled, load
from models.finding import Finding, Segment

ALNUM = string.digits + string.ascii_letters
UPPER = string.digits + string.ascii_uppercase
LOWER = string.digits + string.ascii_lowercase
HEX = "0123456789abcdef"
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def made_up(length: int, alphabet: str = ALNUM, *, seed: str = "") -> str:
    """The same every time, and nobody's."""
    return "".join(random.Random(f"{seed}{length}{alphabet}").choices(alphabet, k=length))  # noqa: S311 - no secret


def uuid() -> str:
    return "-".join(made_up(length, HEX) for length in (8, 4, 4, 4, 12))


def with_crc(prefix: str) -> str:
    body = made_up(30, seed=prefix)
    value, digits = zlib.crc32(body.encode()), ""
    while value:
        value, digit = divmod(value, 62)
        digits = BASE62[digit] + digits
    return prefix + "_" + body + digits.rjust(6, "0")


PEM_BODY = "\n".join(made_up(64, seed=str(line)) for line in range(5))
PEM = "-----BEGIN RSA PRIVATE" + " KEY-----\n" + PEM_BODY + "\n-----END RSA PRIVATE" + " KEY-----"


@pytest.fixture(scope="module")
def detector() -> SecretsDetector:
    return SecretsDetector()


def found(detector: SecretsDetector, text: str) -> list[tuple[str, str]]:
    return [(finding.kind, text[finding.start : finding.end]) for finding in detector.scan(Segment(0, text))]


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        ("aws_access_key", "AKI" + "A" + made_up(16, UPPER)),
        ("aws_access_key", "ASI" + "A" + made_up(16, UPPER)),
        ("aws_appsync_key", "da2" + "-" + made_up(26, LOWER)),
        ("gcp_api_key", "AIz" + "a" + made_up(35)),
        ("google_oauth_client_secret", "GOCSPX" + "-" + made_up(28)),
        ("google_oauth_token", "ya2" + "9." + made_up(60)),
        ("azure_client_secret", made_up(3) + "8Q" + "~" + made_up(34)),
        ("github_pat", with_crc("gh" + "p")),
        ("github_app_token", with_crc("gh" + "s")),
        ("github_fine_grained_pat", "github_" + "pat_" + made_up(22) + "_" + made_up(59)),
        ("gitlab_pat", "glp" + "at-" + made_up(20)),
        (
            "slack_bot_token",
            "xox" + "b-" + made_up(12, string.digits) + "-" + made_up(12, string.digits) + "-" + made_up(24),
        ),
        (
            "slack_webhook",
            "hooks.slack" + ".com/services/T" + made_up(9, UPPER) + "/B" + made_up(9, UPPER) + "/" + made_up(24),
        ),
        ("telegram_bot_token", made_up(9, "123456789") + ":" + "AA" + made_up(33)),
        ("sendgrid_key", "S" + "G." + made_up(22) + "." + made_up(43)),
        ("mailchimp_key", made_up(32, HEX) + "-us" + "12"),
        ("stripe_secret_key", "sk_" + "live_" + made_up(24)),
        ("stripe_secret_key", "rk_" + "test_" + made_up(99)),
        ("shopify_token", "shp" + "at_" + made_up(32, HEX)),
        ("square_token", "sq0" + "csp-" + made_up(43)),
        ("openai_key", "sk-" + made_up(20) + "T3Blbk" + "FJ" + made_up(20)),
        ("openai_key", "sk-" + "proj-" + made_up(120)),
        ("anthropic_key", "sk-" + "ant-api03-" + made_up(93) + "AA"),
        ("huggingface_token", "hf" + "_" + made_up(34)),
        ("groq_key", "gs" + "k_" + made_up(52)),
        ("xai_key", "xa" + "i-" + made_up(80)),
        ("replicate_token", "r" + "8_" + made_up(37)),
        ("npm_token", with_crc("np" + "m")),
        ("pypi_token", "pyp" + "i-AgEIcHlwaS5vcmc" + made_up(120)),
        ("docker_token", "dckr" + "_pat_" + made_up(27)),
        ("digitalocean_token", "dop" + "_v1_" + made_up(64, HEX)),
        ("heroku_key", "HRKU" + "-AA" + made_up(58)),
        ("flyio_token", "fo" + "1_" + made_up(43)),
        ("databricks_token", "dap" + "i" + made_up(32, HEX)),
        ("planetscale_token", "pscale" + "_pw_" + made_up(43)),
        ("supabase_key", "sb" + "p_" + made_up(40, HEX)),
        ("newrelic_key", "NRA" + "K-" + made_up(27, UPPER)),
        ("grafana_token", "gl" + "sa_" + made_up(32) + "_" + made_up(8, HEX)),
        ("sentry_user_token", "sntry" + "u_" + made_up(64, HEX)),
        ("dynatrace_token", "dt0" + "c01." + made_up(24, UPPER) + "." + made_up(64, UPPER)),
        ("terraform_token", made_up(14) + ".atlas" + "v1." + made_up(67)),
        ("vault_token", "hv" + "s." + made_up(90)),
        ("doppler_token", "dp." + "st.dev." + made_up(43)),
        ("pulumi_token", "pu" + "l-" + made_up(40, HEX)),
        ("linear_key", "lin" + "_api_" + made_up(40)),
        ("notion_token", "nt" + "n_" + made_up(11, string.digits) + made_up(35)),
        ("airtable_token", "pa" + "t" + made_up(14) + "." + made_up(64, HEX)),
        ("hubspot_token", "pa" + "t-na1-" + uuid()),
        ("postman_key", "PMA" + "K-" + made_up(24, HEX) + "-" + made_up(34, HEX)),
        ("age_secret_key", "AGE-SECRET-" + "KEY-1" + made_up(58, "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L")),
        ("artifactory_key", "AKC" + "p" + made_up(69)),
        ("google_auth_key", "AQ" + ".Ab8" + made_up(46)),
        ("github_app_token", "gh" + "s_1234567_eyJ" + made_up(30) + "." + made_up(200) + "." + made_up(86)),
        ("wandb_key", "wandb" + "_v1_" + made_up(77)),
        ("together_key", "tgp" + "_v1_" + made_up(43)),
        ("tavily_key", "tvly" + "-prod-" + made_up(6) + "-" + made_up(50)),
        ("xai_key", "xai" + "-token-" + made_up(80)),
        ("sk_key", "sk" + "-kimi-" + made_up(64)),
        ("sk_key", "sk" + "-helicone-" + "-".join(made_up(7, LOWER, seed=part) for part in "abcd")),
        ("sk_key", "sk" + "-" + made_up(22)),
        ("sk_key", "sk" + "_prod_" + made_up(29) + "-" + made_up(30)),
        ("ai_provider_key", "cr" + "sr_" + made_up(64, HEX)),
        ("ai_provider_key", uuid()[:14] + "4" + uuid()[15:] + ":" + made_up(32, HEX)),
        ("agent_tool_key", "dt" + "n_" + made_up(64, HEX)),
        ("agent_tool_key", "py" + "lf_v1_us_" + made_up(43)),
        ("stripe_secret_key", "sk" + "_org_live_" + made_up(60)),
        ("payment_service_key", "APP" + "_USR-1234567890123456-102030-" + made_up(32, HEX) + "-123456789"),
        ("azure_service_key", made_up(42) + "+AC" + "R" + made_up(6)),
        ("azure_service_key", made_up(44) + "Az" + "Fu" + made_up(4) + "=="),
        ("digitalocean_spaces_key", "DO" + "00" + made_up(16, UPPER)),
        ("cloud_access_key", "bce-v3/" + "ALTAK-" + made_up(21) + "/" + made_up(40, HEX)),
        ("platform_token", "sign" + "key-prod-" + made_up(64, HEX)),
        ("database_service_token", "CCDB" + "1_" + made_up(22) + "_" + made_up(40)),
        ("package_registry_token", "packagist" + "_uut_" + made_up(68, HEX)),
        ("snyk_token", "snyk" + "_uat." + made_up(8, HEX) + "." + made_up(60)),
        ("posthog_key", "ph" + "s_" + made_up(43)),
        ("infisical_token", "st" + "." + uuid() + "." + made_up(32, HEX) + "." + made_up(32, HEX)),
        ("product_key", "os_v2" + "_app_" + made_up(103, "abcdefghijklmnopqrstuvwxyz234567")),
        ("product_key", "pk" + "_12345678_" + made_up(32, UPPER)),
        ("secret_token_address", "secret" + "-token:mercury_production_" + made_up(43)),
        ("password_hash", "$2" + "b$12$" + made_up(53)),
        ("password_hash", "$argon2" + "id$v=19$m=65536,t=3,p=4$" + made_up(22) + "$" + made_up(43)),
    ],
)
def test_knows_a_token_by_its_format_alone(detector: SecretsDetector, kind: str, token: str) -> None:
    for text in (token, f"Use {token} for it.", f'"{token}"', f"héllo 🙂 {token}\n"):
        assert (kind, token) in found(detector, text)


@pytest.mark.parametrize(
    ("text", "kind", "secret"),
    [
        ('api_key = "8f3kd92ls0aWq1ZpX7"', "api_key", "8f3kd92ls0aWq1ZpX7"),
        ("export SERVICE_TOKEN=8f3kd92ls0aWq1ZpX7", "api_key", "8f3kd92ls0aWq1ZpX7"),
        ('{"access_token": "8f3kd92ls0aWq1ZpX7"}', "api_key", "8f3kd92ls0aWq1ZpX7"),
        ("my api key is 8f3kd92ls0aWq1ZpX7", "api_key", "8f3kd92ls0aWq1ZpX7"),
        ("curl -H 'X-Api-Key: 8f3kd92ls0aWq1ZpX7' x.org", "api_key", "8f3kd92ls0aWq1ZpX7"),
        ("password: hunter2!", "password", "hunter2!"),
        ("DB_PASSWORD='s3cr&t pass'", "password", "s3cr&t pass"),
        ("The password for the database is: Tr0ub4dor&3", "password", "Tr0ub4dor&3"),
        ("curl -u admin:Secr3tPw https://x.org", "password", "admin:Secr3tPw"),
        ("machine x.org login me password abc123", "password", "abc123"),
        ("postgres://app:p4ss@db:5432/main", "connection_string_password", "p4ss"),
        ("mongodb+srv://app:p4ss@cluster.x.net/", "connection_string_password", "p4ss"),
        ("redis://:p4ss@cache:6379", "connection_string_password", "p4ss"),
        ("amqp://app:p4ss@queue", "connection_string_password", "p4ss"),
        ("https://me:h0pe@x.org/a", "url_password", "h0pe"),
        ("Server=db;User Id=me;Password=h0pe;Database=x", "password", "h0pe"),
        ("Authorization: Basic bWU6aDBwZQ==", "authorization_header", "bWU6aDBwZQ=="),
        ("datadog_api_key: 0123456789abcdef0123456789abcdef", "datadog_key", "0123456789abcdef0123456789abcdef"),
        ("aws_secret_access_key = " + made_up(40), "aws_secret_key", made_up(40)),
        ("define('DB_PASSWORD', 'open sesame');", "password", "open sesame"),
        ('set account\n  password "open sesame"\n', "password", "open sesame"),
        ("db.x.org:5432:main:app:s3cr3t", "password", "s3cr3t"),
        ('<Pass encoding="base64">aDBwZQ==</Pass>', "password", "aDBwZQ=="),
        ("mapsKey: " + made_up(32), "api_key", made_up(32)),
        ("define('LOGGED_IN_KEY', '|-+x 4Zq;o8#Tp!k2?Lw9%Rv7^Nb3');", "secret_key", "|-+x 4Zq;o8#Tp!k2?Lw9%Rv7^Nb3"),
        ("密码 password: 秘密です12 完", "password", "秘密です12"),
        ("Das Passwort lautet h0pe4all", "password", "h0pe4all"),
        ("contraseña: h0pe4all", "password", "h0pe4all"),
        ("密码：h0pe4all", "password", "h0pe4all"),
        ("пароль: h0pe4all", "password", "h0pe4all"),
        ("username admin password h0pe4all", "password", "h0pe4all"),
        ("trino://me:h0pe@x.org/a", "connection_string_password", "h0pe"),
        ("elasticsearch://me:h0pe@x.org", "connection_string_password", "h0pe"),
        ("jdbc:oracle:thin:me/h0pe4all@//x:1521/s", "password", "h0pe4all"),
        ("WIFI:S:net;T:WPA;P:h0pe4all;;", "password", "h0pe4all"),
        ("Cookie: a=b; sessionid=" + made_up(32), "session_cookie", made_up(32)),
        ("ENV APP_TOKEN 8f3kd92ls0aWq1ZpX7", "api_key", "8f3kd92ls0aWq1ZpX7"),
        ("- name: APP_TOKEN\n  value: 8f3kd92ls0aWq1ZpX7", "api_key", "8f3kd92ls0aWq1ZpX7"),
        ('{"name": "API_KEY", "value": "8f3kd92ls0aWq1ZpX7"}', "api_key", "8f3kd92ls0aWq1ZpX7"),
        ("- **API_KEY**: `8f3kd92ls0aWq1ZpX7`", "api_key", "8f3kd92ls0aWq1ZpX7"),
        ("| API_KEY | 8f3kd92ls0aWq1ZpX7 |", "api_key", "8f3kd92ls0aWq1ZpX7"),
        ("Here is the API key: 8f3kd92ls0aWq1ZpX7", "api_key", "8f3kd92ls0aWq1ZpX7"),
        ("our storage key is 8f3kd92ls0aWq1ZpX7", "api_key", "8f3kd92ls0aWq1ZpX7"),
        ("- name: DB_PASSWORD\n  value: h0pe4all", "password", "h0pe4all"),
        ("| DB_PASSWORD | h0pe4all |", "password", "h0pe4all"),
        ("**DB_PASSWORD**: `h0pe4all`", "password", "h0pe4all"),
        ('{"body": "{\\"db_password\\": \\"h0pe4all\\"}"}', "password", "h0pe4all"),
        ("AUTH_TOKEN: 3fcdVj61GJw7UU6mQt3u2VUjNrowEqko", "api_key", "3fcdVj61GJw7UU6mQt3u2VUjNrowEqko"),
        ("ENCRYPTION_KEY=" + made_up(43) + "=", "api_key", made_up(43) + "="),
        ("zai_key: " + made_up(32, HEX) + "." + made_up(16), "ai_provider_key", made_up(32, HEX) + "." + made_up(16)),
    ],
)
def test_reports_the_value_and_not_the_name(detector: SecretsDetector, text: str, kind: str, secret: str) -> None:
    assert (kind, secret) in found(detector, text)


@pytest.mark.parametrize("before", ["\\n", "\\t", "\\\\n", "\\u0022", "\\u003d", "\x1b[1;32m"])
def test_a_token_begins_behind_an_escape(detector: SecretsDetector, before: str) -> None:
    token = "gh" + "o_" + made_up(36)

    assert ("github_oauth_token", token) in found(detector, f"x{before}{token}\\n")


def test_a_password_ends_at_an_escaped_line(detector: SecretsDetector) -> None:
    assert found(detector, r'{"env": "A=1\nDB_PASSWORD=h0pe4all\nB=2"}') == [("password", "h0pe4all")]


@pytest.mark.parametrize(
    "text",
    [
        "api_key = your_api_key_here",
        'api_key = "${API_KEY}"',
        "password = os.environ['PASSWORD']",
        "password: <your password>",
        'token = "xxxxxxxxxxxxxxxxxxxx"',
        "Authorization: Bearer $TOKEN",
        "curl -u user:password https://x.org",
        "AKIAIOSFODNN7" + "EXAMPLE",
        "What is the secret of a good password? Its length.",
        "The token limit is 128000 tokens; max_tokens=4096.",
        "-----BEGIN PRIVATE" + " KEY-----\n...\n-----END PRIVATE" + " KEY-----",
        "-----BEGIN CERTIFICATE-----\n" + PEM_BODY + "\n-----END CERTIFICATE-----",
        "commit 5ce5e32f0c1d2b3a49586776655443322110ffee",
        "https://x.org:8080/a@b",
        "def login(self, password: str, token: str | None = None) -> None:",
        "prompt_toolkit/token.py,sha256=do3EnxLrCDVbq47MzJ2vqSYps-CjVKWNCWzCZgdf5Jo,121",
        "realtime/client_secrets.py,sha256=m1mZTY-yzzrt9xhoFHq55nXVRDimUpwbczHpnvvdkc4,9470",
        "s3_aws_session_token=s3_aws_session_token,",
        "resolve(api_key=api_key, use_sigv4=self._use_sigv4)",
        ".sk-toggleable__content-arrow-label-12 { color: red }",
        "sk_X509_NAME_ENTRY_free(names); sk_stream_alloc_page_frag(sk);",
        "| Password | Description | Required |",
        'status: ok ? "PASSED":"FAILED"',
        "%sudo ALL=(root) NOPASSWD: /bin/systemctl restart",
        "turkey/__init__.py,sha256=AP95yGxOG0Bckv61DRB8q5jENkDXBie3AMNS4z8-1O8,241",
        "'ALAssetsLibrary', 'APActivationPayload', 'ARAnchor'",
        'HEADERS = ("authorization", "x-amz-content-sha256")',
        "Passwort: bitte eingeben",
    ],
)
def test_leaves_placeholders_code_and_prose_alone(detector: SecretsDetector, text: str) -> None:
    assert found(detector, text) == []


@pytest.mark.parametrize(
    "block",
    [
        PEM,
        PEM.replace("\n", "\\n"),
        PEM.replace("\n", "\r\n"),
        PEM.replace("\n", '" +\n"'),
        PEM.replace("RSA PRIVATE KEY", "OPENSSH PRIVATE KEY"),
        PEM.replace("RSA PRIVATE KEY-----", "PGP PRIVATE KEY BLOCK-----"),
        PEM.replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00FF\n\n", 1),
    ],
)
def test_takes_all_of_a_private_key(detector: SecretsDetector, block: str) -> None:
    assert ("private_key", block) in found(detector, f"Here it is:\n{block}\nKeep it safe.")


def test_takes_a_private_key_that_was_cut_off_but_not_the_prose_after_it(detector: SecretsDetector) -> None:
    cut = PEM.partition("\n-----END")[0]

    assert ("private_key", cut) in found(detector, f"{cut}\n\nThat was all of it, I am afraid.")


def test_takes_two_keys_one_after_another_for_two(detector: SecretsDetector) -> None:
    assert [secret for kind, secret in found(detector, f"{PEM}\n{PEM}") if kind == "private_key"] == [PEM, PEM]


@pytest.mark.parametrize(
    ("manifest", "secrets"),
    [
        (
            "apiVersion: v1\nkind: Secret\ndata:\n  user: YWRtaW4=\n  more: aDBwZQ==\nmetadata:\n  name: x",
            ["YWRtaW4=", "aDBwZQ=="],
        ),
        ("data:\n\tuser: YWRtaW4=\nkind: Secret\n", ["YWRtaW4="]),
        ("kind: 'Secret'\nstringData:\n  user: 'admin 1'\n", ["admin 1"]),
        ("kind: Secret\ndata:\n  .dockercfg: |\n    eyJhdXRocyI6e319\ntype: x\n", ["eyJhdXRocyI6e319"]),
        ("kind: ConfigMap\ndata:\n  user: YWRtaW4=\n---\nkind: Secret\ndata:\n  a: aDBwZQ==\n", ["aDBwZQ=="]),
        ("kind: Secret\n```\nThen the others:\ndata:\n  a: aDBwZQ==\n", []),
        ("data:\n  a: aDBwZQ==\nThat was it\nkind: Secret\ndata:\n  b: YWRtaW4=\n", ["YWRtaW4="]),
        ("kind: ConfigMap\ndata:\n  user: YWRtaW4=\n", []),
    ],
)
def test_takes_the_values_of_a_kubernetes_secret(detector: SecretsDetector, manifest: str, secrets: list[str]) -> None:
    values = [secret for kind, secret in found(detector, manifest) if kind == "kubernetes_secret"]

    assert values == secrets


def test_doubts_a_token_whose_checksum_is_wrong_but_reports_it(detector: SecretsDetector) -> None:
    good = with_crc("gh" + "p")
    bad = good[:-1] + ("a" if good[-1] != "a" else "b")

    confident = detector.scan(Segment(0, good))
    doubtful = detector.scan(Segment(0, bad))

    assert [finding.confidence for finding in confident] == [1.0]
    assert [finding.confidence for finding in doubtful] == [pytest.approx(0.45)]


def test_reads_the_checksums_that_issuers_document() -> None:
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256"}).encode()).decode().rstrip("=")

    assert crc32_base62(with_crc("gh" + "o"))
    assert not crc32_base62("ghp_" + "0" * 36)
    assert passes("jwt", header + ".e30.x")
    assert passes("jwt", "eyJAAAA.e30.x") is False
    assert passes("basic", base64.b64encode(b"me:h0pe").decode())
    assert passes("basic", base64.b64encode(b"meh0pe").decode()) is False
    assert passes("unheard of", "x") is None


def test_an_endpoint_allows_strings_and_expressions() -> None:
    token = "sk_" + "live_" + made_up(24)
    other = "sk_" + "live_" + made_up(25)
    odd = "p(a"

    allowing = SecretsDetector(allow=[token, "sk_live_[A-Za-z0-9]{2}", odd])

    assert found(allowing, token) == []
    assert ("stripe_secret_key", other) in found(allowing, other)
    assert found(SecretsDetector(allow=["sk_live_.*"]), other) == []
    assert [secret for _, secret in found(allowing, f"https://me:{odd}1@x.org")] == [odd + "1"]


def test_the_revision_changes_with_the_rules_and_what_is_allowed() -> None:
    rules = [Rule("a", "a", "ab+c"), Rule("b", "b", "x{3}")]

    revisions = {
        SecretsDetector(rules).revision,
        SecretsDetector(rules[:1]).revision,
        SecretsDetector(rules, allow=["abc"]).revision,
        SecretsDetector([rules[0], rules[1]._replace(entropy=3.0)]).revision,
    }

    assert len(revisions) == 4
    assert SecretsDetector(rules).revision == SecretsDetector(list(rules)).revision


def test_a_secret_below_the_entropy_of_its_rule_is_none() -> None:
    strict = SecretsDetector([Rule("a", "a", "k=([a-z]+)", group=1, entropy=1.5)])

    assert found(strict, "k=aaaa k=abcd") == [("a", "abcd")]


async def test_findings_carry_the_segment_and_the_rule(detector: SecretsDetector) -> None:
    segments = [Segment(3, "nothing"), Segment(5, "password: hunter2!")]

    findings: Sequence[Finding] = await detector.detect(segments)

    assert [(finding.segment, finding.rule) for finding in findings] == [(5, "unquoted-password")]
    assert {finding.kind for finding in findings} <= detector.kinds


async def test_a_long_text_is_looked_at_to_its_end(detector: SecretsDetector) -> None:
    token = "sk_" + "live_" + made_up(24)
    text = "lorem ipsum 🙂 " * 20_000 + token

    findings = await detector.detect([Segment(0, text)])

    assert [text[finding.start : finding.end] for finding in findings] == [token]


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN PRIVATE" + " KEY-----\n" + "A" * (3 * BLOCK_CAP),
        ("-----BEGIN PRIVATE" + " KEY-----\n") * 3000,
        "kind: Secret\n" * 5000,
        "kind: Secret\ndata:\n" * 5000,
        'password: "' * 5000,
        "http://a:bcd@" * 5000,
        "eyJ." * 20_000,
        "\0" * 100_000,
        base64.b64encode(bytes(range(256)) * 800).decode(),
    ],
)
def test_no_text_makes_it_slow_or_fail(detector: SecretsDetector, text: str) -> None:
    findings = detector.scan(Segment(0, text))

    assert all(0 <= finding.start < finding.end <= len(text) for finding in findings)
    assert all(finding.end - finding.start <= BLOCK_CAP + 100 for finding in findings if finding.kind == "private_key")


def test_a_megabyte_of_base64_hides_no_secret_and_holds_hardly_one(detector: SecretsDetector) -> None:
    noise = base64.encodebytes(random.Random(5).randbytes(768 * 1024)).decode()  # noqa: S311 - any bytes will do
    token = "ghp_" + "vJ3kQ9xT2mB7nL5wR8cZ1dF6hY4sA0gE2uPo"
    half = len(noise) // 2

    clean = detector.scan(Segment(0, noise))
    found = detector.scan(Segment(0, f"{noise[:half]}\n{token}\n{noise[half:]}"))

    assert len(noise) > 1 << 20
    assert len(clean) <= 1  # chance writes the beginning of a token that has no checksum
    assert ("github_pat", half + 1) in [(finding.kind, finding.start) for finding in found]


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("the password is hunter2 and ", ""),
        ('a password = "correct horse', 'password = "correct horse'),
        ('password = "correct horse" and ', ""),
        ("the key is password = hunter2 ", ""),
        ("<password>hunter2 ", "<password>hunter2 "),
        ("a curl -u 'ann:a ", "curl -u 'ann:a "),
        ("apiVersion: v1\n", ""),
        ("apiVersion: v1\ndata:\n  user: YWRtaW4=\nki", "data:\n  user: YWRtaW4=\nki"),
        ("so\nkind: Secret\nmetadata:\n  name: x\n", "kind: Secret\nmetadata:\n  name: x\n"),
        ("kind: Secret\n```\nThat was it\n", ""),
        ("kind: Secret\n---\na: b\n", ""),
        ("the data: all kinds of secrets ", ""),
    ],
)
def test_a_stream_waits_for_the_rest_of_a_secret_with_white_space(
    detector: SecretsDetector, text: str, opened: str
) -> None:
    assert detector.open_from is not None
    assert text[detector.open_from(text) :] == opened


def test_other_secrets_hold_nothing_back(detector: SecretsDetector) -> None:
    assert detector.reach == 0
    assert detector.context == 256


def test_an_allowlist_for_lines_waits_for_the_end_of_the_line() -> None:
    allowed = Allowed(regexes=compiled("not really"), target="line")

    waiting = SecretsDetector([Rule("a", "a", r"tok_[0-9]{4}", allowed=(allowed,))])

    assert waiting.context >= 1000
    assert waiting.open_from is not None
    assert waiting.open_from("a tok_1234 and ") == 2
    assert waiting.open_from("a tok_1234 and\n") == 15


def test_where_a_pattern_is_not_understood_a_stream_waits_for_its_end() -> None:
    waiting = SecretsDetector([Rule("a", "a", r"\p{Greek}{9}")])

    assert waiting.reach is None
    assert waiting.open_from is None


def test_every_shipped_rule_reads_well_and_has_a_name_of_its_own() -> None:
    shipped = load(SHIPPED)

    assert len({rule.id for rule in shipped.rules}) == len(shipped.rules) >= 150
    assert all(rule.kind.replace("_", "").isalnum() and rule.kind.islower() for rule in shipped.rules)
    assert all(rule.description and 0 < rule.confidence <= 1 for rule in shipped.rules)
    assert all(rule.checksum == "" or passes(rule.checksum, "x") is False for rule in shipped.rules)
    assert shipped.notes == ()


def test_entropy_is_shannons() -> None:
    assert entropy("aaaa") == 0
    assert entropy("abab") == 1
    assert entropy("abcdefgh") == 3


def test_a_known_format_comes_before_the_name_it_was_assigned_to(detector: SecretsDetector) -> None:
    token = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"

    findings = detector.scan(Segment(0, f"the api key is {token}, ask"))

    assert [finding.kind for finding in findings] == ["github_pat", "api_key"]
    assert {(finding.start, finding.end) for finding in findings} == {(15, 55)}

"""What is said of a client certificate when it is written."""

import time

import pytest

from aisix.errors import FieldError
from aisix.upstream.certificate import check_certificate
from tests.support.client_certificates import (
    DAY,
    certificate_pem,
    client_pem,
    elliptic_key,
    key_pem,
    rsa_key,
)

PASSWORD = "hunter2 and more"


def check(pem, password=None):
    check_certificate(pem, password, now=time.time())


def test_a_key_with_its_certificate_is_good_in_either_order():
    check(client_pem())
    check(certificate_pem() + key_pem())


def test_an_encrypted_key_is_good_with_its_password():
    check(client_pem(password=PASSWORD), PASSWORD)


def test_certificates_of_issuers_may_follow():
    check(client_pem() + certificate_pem(rsa_key("issuer")))


def test_what_openssl_writes_around_the_blocks_is_no_hindrance():
    bag = "Bag Attributes\n    friendlyName: Zugang für alle\nKey Attributes: <No Attributes>\n"
    check(bag + key_pem() + bag + certificate_pem())


def damaged(pem):
    """With a line in the middle gone."""
    lines = pem.splitlines()
    del lines[len(lines) // 2]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("make", "password", "words"),
    [
        (key_pem, None, "has no certificate; append the PEM block"),
        (certificate_pem, None, "has no private key; append the PEM block"),
        (lambda: client_pem(password=PASSWORD), None, "give its client_certificate_password"),
        (lambda: client_pem(password=PASSWORD), "hunter2", "check the password"),
        (client_pem, "hunter2", "leave client_certificate_password out"),
        (lambda: client_pem(elliptic_key()), None, "takes RSA keys only"),
        (lambda: client_pem(rsa_key("short", 1024)), None, "of 1024 bits; Entra ID wants 2048"),
        (lambda: key_pem() + certificate_pem(rsa_key("b")), None, "does not belong to the private"),
        (
            lambda: key_pem() + certificate_pem(rsa_key("issuer")) + certificate_pem(),
            None,
            "put the key's own certificate before",
        ),
        (lambda: client_pem(begins=-2 * DAY, ends=-DAY), None, "expired on 20"),
        (lambda: client_pem(begins=DAY, ends=2 * DAY), None, "is not valid before 20"),
        (lambda: damaged(key_pem()) + certificate_pem(), None, "a private key that cannot be read"),
        (lambda: key_pem() + damaged(certificate_pem()), None, "a certificate that cannot be read"),
    ],
)
def test_a_bad_one_is_refused_in_words_that_hold_none_of_it(make, password, words):
    pem = make()
    with pytest.raises(FieldError) as refused:
        check(pem, password)
    text = str(refused.value)
    assert words in text
    assert text.startswith("secret: client_certificate")
    assert "hunter2" not in text
    assert not any(line in text for line in pem.splitlines() if "-----" not in line)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None

"""Signs in on a bastion with paramiko and does one thing there.

    with_paramiko.py PORT HOSTKEY USER FIRST exec COMMAND
    with_paramiko.py PORT HOSTKEY USER FIRST jump TARGET ACCOUNT COMMAND
    with_paramiko.py PORT HOSTKEY USER FIRST sftp PATH

HOSTKEY is the line of the host's public key. FIRST is `password`, `key:FILE`, `interactive`, or
`unaided`: a password, and then a code without what this file adds to paramiko. Each question is a line of JSON on standard output, and
each answer a line of standard input. The last line says what came of it.
"""

import json
import sys
import threading

import paramiko
from paramiko.auth_handler import AuthHandler


def say(**line):
    print(json.dumps(line), flush=True)


def ask(prompt, instructions=""):
    say(asked=prompt, instructions=instructions)
    return sys.stdin.readline().rstrip("\n")


def interact(title, instructions, prompts):
    return [ask(prompt, instructions) for prompt, _echo in prompts]


class NextMethod(AuthHandler):
    """The second method of a login. A paramiko Transport asks for the authentication service anew before
    each, and waits for an answer that the bastion does not give again: it has been let in to that service
    (RFC 4252 section 5). From paramiko 3.2 on ServiceRequestingTransport does what this does."""

    def _request_auth(self):
        accepted = paramiko.Message()
        accepted.add_string("ssh-userauth")
        accepted.rewind()
        self._parse_service_accept(accepted)


def go_on(transport, user):
    done = threading.Event()
    transport.auth_handler = NextMethod(transport)
    transport.auth_handler.auth_interactive(user, interact, done, "")
    transport.auth_handler.wait_for_response(done)


def sign_in(transport, user, first):
    """paramiko says after each method which are left: an empty list is the end."""
    # The whole of a method has this long, typing included; the default, 30 s, is too short to scan a code.
    transport.auth_timeout = 600
    if first == "interactive":
        return transport.auth_interactive(user, interact)
    if first == "unaided":
        transport.auth_password(user, ask("password"))
        transport.auth_timeout = 2
        return transport.auth_interactive(user, interact)
    if first == "password":
        left = transport.auth_password(user, ask("password"))
    else:
        left = transport.auth_publickey(user, paramiko.Ed25519Key(filename=first[4:]))
    return go_on(transport, user) if left else left


def run(transport, command):
    channel = transport.open_session()
    channel.exec_command(command)
    return channel.makefile("r").read().decode()


def jump(transport, target, account, command):
    """What `ssh -J` does: a second connection inside the first, let in without a question."""
    hop = transport.open_channel("direct-tcpip", (target, 22), ("127.0.0.1", 0))
    inner = paramiko.Transport(hop)
    inner.start_client(timeout=30)
    inner.auth_none(account)
    out = run(inner, command)
    inner.close()
    return out


def read(transport, path):
    sftp = paramiko.SFTPClient.from_transport(transport)
    with sftp.open(path) as file:
        return file.read().decode()


def main():
    port, key, user, first, action, *words = sys.argv[1:]
    key = paramiko.hostkeys.HostKeyEntry.from_line(f"host {key}").key
    transport = paramiko.Transport(("127.0.0.1", int(port)))
    try:
        transport.start_client(timeout=30)
        if transport.get_remote_server_key() != key:
            raise paramiko.SSHException("another host key")
        sign_in(transport, user, first)
        say(out={"exec": run, "jump": jump, "sftp": read}[action](transport, *words))
    except paramiko.SSHException as error:
        say(refused=str(error))
    transport.close()


main()

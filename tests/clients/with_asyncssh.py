"""Signs in on a bastion with asyncssh and does one thing there.

    with_asyncssh.py PORT HOSTKEY USER FIRST exec COMMAND
    with_asyncssh.py PORT HOSTKEY USER FIRST jump TARGET ACCOUNT COMMAND
    with_asyncssh.py PORT HOSTKEY USER FIRST sftp PATH

HOSTKEY is the line of the host's public key. FIRST is `password`, `key:FILE`, or `interactive`. Each
question is a line of JSON on standard output, and each answer a line of standard input. The last line
says what came of it.
"""

import asyncio
import json
import sys

import asyncssh


def say(**line):
    print(json.dumps(line), flush=True)


def ask(prompt, instructions=""):
    say(asked=prompt, instructions=instructions)
    return sys.stdin.readline().rstrip("\n")


class Asker(asyncssh.SSHClient):
    """Passes each prompt on. Without these two methods asyncssh answers a prompt only if it is for a
    password."""

    def kbdint_auth_requested(self):
        return ""

    def kbdint_challenge_received(self, name, instructions, lang, prompts):
        return [ask(prompt, instructions) for prompt, _echo in prompts]


def options(port, key, first):
    methods = {"password": "password,keyboard-interactive", "interactive": "keyboard-interactive"}
    given = {"password": ask("password")} if first == "password" else {}
    if first.startswith("key:"):
        given = {"client_keys": [first[4:]]}
    return {
        "config": None,
        "agent_path": None,
        "client_keys": None,
        "known_hosts": f"[127.0.0.1]:{port} {key}".encode(),
        "preferred_auth": methods.get(first, "publickey,keyboard-interactive"),
        # The whole sign-in has this long; the default is 120 s, which is short for scanning a code.
        "login_timeout": 600,
        **given,
    }


async def jump(connection, target, account, command):
    """What `ssh -J` does: a second connection inside the first, let in without a question."""
    inner = {"username": account, "known_hosts": None, "client_keys": None, "agent_path": None, "config": None}
    async with connection.connect_ssh(target, 22, **inner) as hop:
        return await run(hop, command)


async def run(connection, command):
    return (await connection.run(command)).stdout


async def read(connection, path):
    async with connection.start_sftp_client() as sftp, sftp.open(path) as file:
        return await file.read()


async def main():
    port, key, user, first, action, *words = sys.argv[1:]
    try:
        async with asyncssh.connect(
            "127.0.0.1", int(port), username=user, client_factory=Asker, **options(port, key, first)
        ) as connection:
            say(out=await {"exec": run, "jump": jump, "sftp": read}[action](connection, *words))
    except asyncssh.Error as error:
        say(refused=str(error))


asyncio.run(main())

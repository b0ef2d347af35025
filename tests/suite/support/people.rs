//! People, targets and grants, put into a store past its prompts.

use std::time::Duration;

use sallyport::audit::Context;
use sallyport::auth::{password, recovery, totp};
use sallyport::domain::{
    Grant, GrantObject, GrantSubject, Id, Mode, Role, Target, TimeStep, UnixTime, UserName,
};
use sallyport::store::{NewAuthenticator, NewUser, Store};
use secrecy::{ExposeSecret as _, SecretString};

pub const PASSWORD: &str = "gleaming cactus 91";

/// Somebody with an account and an authenticator.
pub struct Person {
    pub name: UserName,
    pub id: Id,
    pub secret: totp::Secret,
    pub recovery: Vec<SecretString>,
}

/// A store to put people, targets and grants into, and the time to write down.
pub struct Registry<'a> {
    pub store: &'a Store,
    pub now: UnixTime,
}

impl Registry<'_> {
    /// Adds a user with a one-time password and no authenticator.
    pub async fn newcomer(&self, name: &str) -> SecretString {
        let one_time = password::one_time().unwrap();
        self.add(name, &one_time, true, Role::User).await;
        one_time
    }

    async fn add(&self, name: &str, password: &SecretString, one_time: bool, role: Role) -> Id {
        let cost = password::Cost { memory_kib: 8, passes: 1, lanes: 1 };
        let name: UserName = name.parse().unwrap();
        let new = NewUser {
            name: &name,
            role,
            factor: None,
            password_hash: &password::hash(password, cost).unwrap(),
            one_time,
            binding_until: self.now.plus(Duration::from_secs(24 * 3600)),
            keys: Vec::new(),
        };
        self.store.add_user(&new, &Context::default(), self.now).await.unwrap()
    }

    /// Adds a user with the password [`PASSWORD`] and a bound authenticator.
    pub async fn person(&self, name: &str) -> Person {
        self.person_as(name, Role::User).await
    }

    pub async fn person_as(&self, name: &str, role: Role) -> Person {
        let id = self.add(name, &PASSWORD.into(), false, role).await;
        let secret = totp::Secret::generate().unwrap();
        let new = NewAuthenticator { account: &id, epoch: 1, secret: &secret, step: TimeStep(0) };
        let bound = self.store.bind(&new, Vec::new(), &Context::default(), self.now).await.unwrap();
        let (_, recovery) = bound.unwrap();
        assert_eq!(recovery.len(), recovery::COUNT);
        Person { name: name.parse().unwrap(), id, secret, recovery }
    }

    /// Gives `user` a key, as OpenSSH writes it into `.pub` files.
    pub async fn key(&self, user: &str, line: &str) {
        let key = russh::keys::PublicKey::from_openssh(line).unwrap();
        let fingerprint = key.fingerprint(russh::keys::HashAlg::Sha256).to_string();
        let (name, line) = (user.parse().unwrap(), key.to_openssh().unwrap());
        let context = Context::default();
        self.store.add_key(&name, &fingerprint, &line, &context, self.now).await.unwrap();
    }

    /// Registers a target and grants it to `user`.
    pub async fn grant(&self, user: &str, target: &str, address: &str) -> Id {
        self.target(target, address).await;
        self.add_grant(user, target, |_| {}).await
    }

    pub async fn target(&self, name: &str, address: &str) {
        let target = Target {
            id: Id::random().unwrap(),
            name: name.parse().unwrap(),
            address: address.parse().unwrap(),
            mode: Mode::Tunnel,
            sign_in: None,
            labels: Vec::new(),
            created_at: self.now,
        };
        self.store.add_target(&target, &Context::default(), self.now).await.unwrap();
    }

    pub async fn add_grant(&self, user: &str, target: &str, change: impl FnOnce(&mut Grant)) -> Id {
        let mut grant = Grant {
            id: Id::random().unwrap(),
            subject: GrantSubject::User(user.parse().unwrap()),
            object: GrantObject::Target(target.parse().unwrap()),
            accounts: Vec::new(),
            allow: Vec::new(),
            hours: None,
            from: Vec::new(),
            until: None,
            step_up: false,
            created_at: self.now,
        };
        change(&mut grant);
        self.store.add_grant(&grant, &Context::default(), self.now).await.unwrap();
        grant.id
    }
}

/// What a person's authenticator shows at `now`.
pub fn code_at(person: &Person, now: UnixTime) -> String {
    code_of(person.secret.expose(), now)
}

pub fn code_of(secret: &[u8], now: UnixTime) -> String {
    let totp = totp_rs::Builder::new().with_secret(secret.to_vec()).build().unwrap();
    totp.generate(now.seconds()).to_string()
}

/// The secret of an otpauth URI, as an authenticator reads it.
pub fn secret_of(uri: &str) -> Vec<u8> {
    let base32 = uri.split("secret=").nth(1).unwrap().split('&').next().unwrap();
    totp_rs::Secret::try_from_base32(base32).unwrap().as_bytes().to_vec()
}

impl Person {
    pub fn recovery_code(&self, n: usize) -> String {
        self.recovery[n].expose_secret().to_owned()
    }
}

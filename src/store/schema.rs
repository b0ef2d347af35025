//! The tables as diesel sees them; `migrations/` makes them.

use diesel::{allow_tables_to_appear_in_same_query, joinable, table};

table! {
    users (id) {
        id -> Text,
        name -> Text,
        role -> Text,
        factor -> Text,
        created_at -> BigInt,
        disabled_at -> Nullable<BigInt>,
        epoch -> BigInt,
        password_hash -> Text,
        password_one_time -> BigInt,
        password_set_at -> BigInt,
        binding_until -> Nullable<BigInt>,
        otp_secret -> Nullable<Text>,
        otp_bound_at -> Nullable<BigInt>,
        otp_last_step -> BigInt,
        otp_last_used_at -> Nullable<BigInt>,
        otp_drift_seconds -> Nullable<BigInt>,
    }
}

table! {
    recovery_codes (user_id, hash) {
        user_id -> Text,
        hash -> Text,
        used_at -> Nullable<BigInt>,
    }
}

table! {
    binding_passwords (user_id) {
        user_id -> Text,
    }
}

table! {
    user_factors (user_id) {
        user_id -> Text,
        factor -> Text,
        radius_mode -> Nullable<Text>,
    }
}

table! {
    group_factors (group_name) {
        group_name -> Text,
        factor -> Text,
        radius_mode -> Nullable<Text>,
    }
}

table! {
    user_sign_in (user_id) {
        user_id -> Text,
        rule -> Text,
    }
}

table! {
    group_sign_in (group_name) {
        group_name -> Text,
        rule -> Text,
    }
}

table! {
    target_sign_in (target_id) {
        target_id -> Text,
        rule -> Text,
    }
}

table! {
    login_certificates (serial) {
        serial -> BigInt,
        user_id -> Text,
        key -> Text,
        epoch -> BigInt,
        source -> Nullable<Text>,
        session_id -> Text,
        issued_at -> BigInt,
        expires_at -> BigInt,
        last_used_at -> Nullable<BigInt>,
        revoked_at -> Nullable<BigInt>,
    }
}

table! {
    session_certificates (session_id) {
        session_id -> Text,
        serial -> BigInt,
    }
}

table! {
    group_remember (group_name) {
        group_name -> Text,
        millis -> BigInt,
    }
}

table! {
    remembered_logins (id) {
        id -> Text,
        user_id -> Text,
        key -> Text,
        source -> Text,
        epoch -> BigInt,
        code_at -> BigInt,
        last_used_at -> Nullable<BigInt>,
    }
}

table! {
    used_codes (user_id, hash) {
        user_id -> Text,
        hash -> Text,
        expires_at -> BigInt,
    }
}

table! {
    user_keys (user_id, fingerprint) {
        user_id -> Text,
        fingerprint -> Text,
        public_key -> Text,
        added_at -> BigInt,
    }
}

table! {
    user_groups (name) {
        name -> Text,
        created_at -> BigInt,
    }
}

table! {
    group_members (group_name, user_id) {
        group_name -> Text,
        user_id -> Text,
    }
}

table! {
    targets (id) {
        id -> Text,
        name -> Text,
        host -> Text,
        port -> BigInt,
        mode -> Text,
        created_at -> BigInt,
    }
}

table! {
    target_labels (target_id, key) {
        target_id -> Text,
        key -> Text,
        value -> Text,
    }
}

table! {
    grants (id) {
        id -> Text,
        user_id -> Nullable<Text>,
        group_name -> Nullable<Text>,
        target_id -> Nullable<Text>,
        label -> Nullable<Text>,
        accounts -> Text,
        allow -> Text,
        hours -> Nullable<Text>,
        sources -> Text,
        until -> Nullable<BigInt>,
        created_at -> BigInt,
        step_up -> BigInt,
    }
}

table! {
    throttle (account, source) {
        account -> Text,
        source -> Text,
        failures -> BigInt,
        last_failed_at -> BigInt,
        locked_until -> Nullable<BigInt>,
    }
}

table! {
    sessions (id) {
        id -> Text,
        user_id -> Text,
        user_name -> Text,
        node -> Text,
        source -> Text,
        client -> Text,
        started_at -> BigInt,
        ended_at -> Nullable<BigInt>,
        end_reason -> Nullable<Text>,
        bytes_up -> BigInt,
        bytes_down -> BigInt,
        kill_requested_at -> Nullable<BigInt>,
    }
}

table! {
    forwards (id) {
        id -> Text,
        session_id -> Text,
        destination -> Text,
        target -> Text,
        address -> Nullable<Text>,
        opened_at -> BigInt,
        closed_at -> Nullable<BigInt>,
        bytes_up -> BigInt,
        bytes_down -> BigInt,
        end_reason -> Nullable<Text>,
    }
}

table! {
    target_accounts (target_id, name) {
        target_id -> Text,
        name -> Text,
        auth -> Text,
        secret -> Nullable<Text>,
        created_at -> BigInt,
    }
}

table! {
    target_keys (target_id, key) {
        target_id -> Text,
        key -> Text,
        authority -> BigInt,
        pinned_at -> BigInt,
    }
}

table! {
    recordings (id) {
        id -> Text,
        session_id -> Text,
        node -> Text,
        target -> Text,
        account -> Text,
        kind -> Text,
        command -> Nullable<Text>,
        path -> Text,
        started_at -> BigInt,
        ended_at -> Nullable<BigInt>,
        outcome -> Nullable<Text>,
        bytes_up -> BigInt,
        bytes_down -> BigInt,
        size -> Nullable<BigInt>,
        sha256 -> Nullable<Text>,
        removed_at -> Nullable<BigInt>,
    }
}

table! {
    audit_events (seq) {
        seq -> BigInt,
        at -> BigInt,
        kind -> Text,
        user_name -> Nullable<Text>,
        session_id -> Nullable<Text>,
        body -> Text,
        hash -> Text,
        signature -> Text,
    }
}

table! {
    audit_head (id) {
        id -> BigInt,
        seq -> BigInt,
        hash -> Text,
    }
}

table! {
    revision (id) {
        id -> BigInt,
        value -> BigInt,
    }
}

table! {
    store_keys (kind) {
        kind -> Text,
        key -> Text,
    }
}

table! {
    attacks (account) {
        account -> Text,
        failures -> BigInt,
        since -> BigInt,
    }
}

table! {
    code_failures (user_id) {
        user_id -> Text,
        failures -> BigInt,
        since -> BigInt,
        limited_until -> Nullable<BigInt>,
    }
}

table! {
    known_sources (user_id, source) {
        user_id -> Text,
        source -> Text,
        last_at -> BigInt,
    }
}

table! {
    nodes (node) {
        node -> Text,
        beats -> BigInt,
        sealing_keys -> Text,
    }
}

table! {
    /// Diesel's own: the migrations that were run.
    #[sql_name = "__diesel_schema_migrations"]
    migrations (version) {
        version -> Text,
    }
}

joinable!(recovery_codes -> users (user_id));
joinable!(user_keys -> users (user_id));
joinable!(group_members -> users (user_id));
joinable!(group_members -> user_groups (group_name));
joinable!(target_labels -> targets (target_id));
joinable!(grants -> users (user_id));
joinable!(grants -> targets (target_id));
joinable!(forwards -> sessions (session_id));
joinable!(target_accounts -> targets (target_id));
joinable!(target_keys -> targets (target_id));
joinable!(recordings -> sessions (session_id));
allow_tables_to_appear_in_same_query!(
    users,
    recovery_codes,
    binding_passwords,
    user_factors,
    group_factors,
    user_sign_in,
    group_sign_in,
    target_sign_in,
    login_certificates,
    session_certificates,
    group_remember,
    remembered_logins,
    used_codes,
    user_keys,
    user_groups,
    group_members,
    targets,
    target_labels,
    grants,
    throttle,
    sessions,
    forwards,
    target_accounts,
    target_keys,
    recordings,
    audit_events,
    audit_head,
    revision,
    store_keys,
    nodes,
    attacks,
    code_failures,
    known_sources,
    migrations,
);

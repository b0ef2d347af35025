//! TODO-HEADER totp

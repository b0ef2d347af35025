//! Who may go where, when: one pure function.

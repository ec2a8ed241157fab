//! The guest agent.

mod agent;

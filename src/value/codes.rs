//! Enums whose variants are stable words for programs.

/// Declares an enum of codes: each variant with its word in JSON and its meaning, sorted by word.
macro_rules! codes {
    ($(#[$doc:meta])* pub enum $name:ident {
        $($variant:ident $word:literal $meaning:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $(
                #[doc = $meaning]
                $variant,
            )*
        }

        impl $name {
            /// Every code with its meaning.
            pub const ALL: &[(Self, &str)] = &[$((Self::$variant, $meaning),)*];

            /// The word in JSON and varlink.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }
    };
}

pub(crate) use codes;

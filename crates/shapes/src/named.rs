//! One macro for the closed word lists of the world: shapes, colors, sizes, backgrounds.

/// Defines an enum whose members have a lower-case name, used alike in captions, in JSON and in error messages.
macro_rules! named {
    (
        $(#[$meta:meta])*
        pub enum $name:ident as $kind:literal { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every member, in a fixed order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// The names of [`Self::ALL`], in the same order.
            pub const NAMES: &'static [&'static str] = &[$($word,)+];

            /// The word used in captions and files.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The member with this name, if there is one.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::Error;

            fn from_str(name: &str) -> crate::Result<Self> {
                Self::from_name(name).ok_or_else(|| crate::Error::UnknownName {
                    kind: $kind,
                    found: name.to_owned(),
                    expected: Self::NAMES,
                })
            }
        }
    };
}

pub(crate) use named;
